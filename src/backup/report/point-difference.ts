import { closeAll } from "../base/in-parallel.js";
import { findChain, openChain } from "../chain/chain.js";
import { failOnDamage, type Layer } from "../chain/layer.js";
import { seenThrough, type VisibleExtent } from "../chain/overlay.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";

/** A stretch of a disk that two points may have with different content. In bytes. */
export interface ChangedExtent {
  readonly offset: number;
  readonly length: number;
  /** What the second point has there. */
  readonly state: "data" | "zero";
}

interface Difference {
  readonly repository: Repository;
  /** The name of the domain's folder. */
  readonly folder: string;
  /** Both have the disk. */
  readonly from: Manifest;
  readonly to: Manifest;
  readonly disk: string;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Where a disk differs between two points, whichever of them is based on the other, if any is. No data is
 * read: clusters are the same if both points have them from the same image, or with the same digest. All that
 * differs is told, and a cluster whose bytes differ is told as a whole; so is one without digests that was
 * written again with the same bytes, and one that was zeroes and holds written zeroes now, or the other way
 * round. What is past the end of a disk counts as zeroes. Call it as a reader (`Repository.reading`).
 *
 * @returns extents in the order of the disk, none of which continues the one before it
 * @throws {DamageError} a chain is not whole, or tables and digests of an image contradict each other
 * @throws the signal's reason
 */
export async function* differenceOf({
  repository,
  folder,
  from,
  to,
  disk,
  signal,
}: Difference): AsyncGenerator<ChangedExtent> {
  const layers: Layer[] = [];
  const open = async (point: Manifest): Promise<Layer[]> => {
    const links = await findChain(repository, folder, point, disk);
    const opened = await openChain(repository, folder, links, { signal });
    layers.push(...opened);
    return opened;
  };
  try {
    const before = await open(from);
    const after = await open(to);
    const size = Math.max(before[0]?.geometry.virtualSize ?? 0, after[0]?.geometry.virtualSize ?? 0);
    const pieces = compared(
      seenThrough(before, size, failOnDamage),
      seenThrough(after, size, failOnDamage),
      signal,
    );
    yield* joined(pieces);
  } finally {
    await closeAll(...layers);
  }
}

/** Walks over both at once. Both come in the order of the disk and without gaps, and end at the same byte. */
async function* compared(
  before: AsyncIterable<VisibleExtent>,
  after: AsyncIterable<VisibleExtent>,
  signal: AbortSignal | undefined,
): AsyncGenerator<ChangedExtent> {
  const older = before[Symbol.asyncIterator]();
  let old: VisibleExtent | undefined;
  for await (const now of after) {
    signal?.throwIfAborted();
    const end = now.offset + now.length;
    for (let offset = now.offset; offset < end; ) {
      while (!old || old.offset + old.length <= offset) {
        const next: IteratorResult<VisibleExtent> = await older.next();
        if (next.done) throw new RangeError(`the first point ends before byte ${offset}`);
        old = next.value;
      }
      const stop = Math.min(end, old.offset + old.length);
      yield* changed(old, now, offset, stop);
      offset = stop;
    }
  }
  // A digest file is compared with its own SHA-256 at its end.
  while (!(await older.next()).done);
}

/** What differs from byte `offset` to `stop`, which both pieces have. */
function* changed(
  old: VisibleExtent,
  now: VisibleExtent,
  offset: number,
  stop: number,
): Generator<ChangedExtent> {
  const state = now.state === "data" ? "data" : "zero";
  if (old.state !== "data" && now.state !== "data") return;
  // An image has each place of the disk once.
  if (old.from && now.from && old.from.layer.pointId === now.from.layer.pointId) return;
  const clusterSize = comparableClusters(old, now);
  if (clusterSize === undefined) {
    yield { offset, length: stop - offset, state };
    return;
  }
  for (let at = offset; at < stop; ) {
    const cluster = Math.floor(at / clusterSize);
    const next = Math.min(stop, (cluster + 1) * clusterSize);
    const one = digestOf(old, cluster);
    const other = digestOf(now, cluster);
    if (!one || !other?.equals(one)) yield { offset: at, length: next - at, state };
    at = next;
  }
}

/** The size of clusters whose digests can be compared; undefined if they can't be. */
function comparableClusters(old: VisibleExtent, now: VisibleExtent): number | undefined {
  const [one, other] = [old.from, now.from];
  if (one?.run.kind !== "data" || other?.run.kind !== "data") return undefined;
  const isAlike =
    one.layer.geometry.clusterSize === other.layer.geometry.clusterSize &&
    one.layer.disk.digests?.algorithm === other.layer.disk.digests?.algorithm &&
    // The digest of a last cluster that is cut off is of fewer bytes.
    one.layer.geometry.virtualSize === other.layer.geometry.virtualSize;
  return isAlike && one.run.digests && other.run.digests ? one.layer.geometry.clusterSize : undefined;
}

function digestOf({ from }: VisibleExtent, cluster: number): Buffer | undefined {
  if (!from) return undefined;
  const { layer, run } = from;
  const at = (cluster - run.cluster) * layer.digestSize;
  return run.digests?.subarray(at, at + layer.digestSize);
}

async function* joined(pieces: AsyncIterable<ChangedExtent>): AsyncGenerator<ChangedExtent> {
  let last: ChangedExtent | undefined;
  for await (const piece of pieces) {
    if (last && last.state === piece.state && last.offset + last.length === piece.offset) {
      last = { ...last, length: last.length + piece.length };
      continue;
    }
    if (last) yield last;
    last = piece;
  }
  if (last) yield last;
}
