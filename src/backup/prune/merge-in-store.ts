import { anySignal } from "../../nbd/index.js";
import { PreconditionError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { openChain } from "../chain/chain.js";
import { failOnDamage, Layer } from "../chain/layer.js";
import { Qcow2Reader } from "../qcow2/reader.js";
import { hasLiveNote } from "../repository/live-note.js";
import type { DiskManifest, Manifest } from "../repository/manifest.js";
import { replacingManifest, withImagesAside } from "../repository/merged-manifest.js";
import type { Repository } from "../repository/repository.js";
import type { KeptVersion, StoredMerge, StoreWriting } from "../storage/stored-writing.js";
import { chainOf, type DiskChain } from "./disk-chain.js";
import { backingOf, mergeDiskInto, type OpenLayers } from "./merge-disk.js";
import { type CopyPlan, planCopies } from "./plan-copies.js";
import type { DoneMerge, PruneOptions } from "./prune-options.js";
import type { Merge } from "./prune-plan.js";
import { StoreMergeTarget } from "./store-merge-target.js";

/** What the merges of a point have done. */
interface MergedInStore {
  readonly merges: readonly DoneMerge[];
  /** What stays of the images as they were before. */
  readonly versions: readonly KeptVersion[];
  /** By how many bytes the point's files have grown. */
  readonly grownBytes: number;
}

/** What a merge would do. Only tables and digest files are read. */
export async function planInStore(options: PruneOptions, merge: Merge): Promise<DoneMerge> {
  const chain = await chainOf(options, merge);
  return await withLayers(chain, options, async (open) => {
    const { travellingBytes, copiedBytes } = await planCopies(open, chain.links[0].disk.virtualSize);
    return { ...merge, base: null, writtenBytes: travellingBytes, copiedBytes };
  });
}

/**
 * Merges into a point in an object store what it needs of dropped points: new images take the place of its
 * own. The store copies what it can; what travels is compared with its digests. So are, when the new images
 * are there, the ends of all that the store has copied.
 * @param merges those of one point
 * @param options.isLive whether a guest was known to run on a point: what that is based on stays as it is
 * @throws {PreconditionError} `E_LIVE`: a guest has begun to run on another one
 * @throws {DamageError} the point, or what it needs, is damaged, or the store has copied something else; the
 *   point is as before
 * @throws {BackupError} `E_LEASE_LOST`
 */
export async function mergeInStore(
  writing: StoreWriting,
  merges: readonly Merge[],
  point: Manifest,
  { isLive, ...options }: PruneOptions & { readonly isLive: (id: string) => boolean },
): Promise<MergedInStore> {
  const { repository, domain, signal: stop } = options;
  const signal = anySignal(stop, writing.lost);
  // What was begun to be committed is, if it takes some seconds only: the signal of the command would have it
  // undone.
  const steady = repository.withSignal(writing.over);
  const refuse = (records: readonly { readonly point: string; readonly name: string }[]): void => {
    const live = records.find((each) => hasLiveNote([each.name]) && !isLive(each.point));
    if (live) throw beganMeanwhile(domain, live.point);
  };
  const merge = await writing.merge(point.id, { signal, refuse });
  const done: MergedOne[] = [];
  try {
    const before = await bytesOfPoint(options, point.id);
    for (const each of merges) done.push(await mergeOne(merge, each, { ...options, signal }));
    signal.throwIfAborted();
    const disks = point.disks.map((disk) => done.find(({ before }) => before === disk.name)?.disk ?? disk);
    const isFull = disks.every(({ mode }) => mode === "full");
    const versions = await merge.commit({
      aside: (text) =>
        withImagesAside(text, new Map(done.map(({ disk: { file } }) => [file, merge.nameOf(file)]))),
      merged: (text) => replacingManifest(text, { ...point, level: isFull ? "full" : "incremental", disks }),
      prove: async () => {
        for (const { disk, ends } of done) await prove(steady, domain, point.id, disk, ends);
      },
      stale: point.disks.flatMap(({ name, digests }) =>
        digests && done.some(({ before }) => before === name) ? digests.file : [],
      ),
      refuse,
      onStep: options.onStep,
    });
    const grownBytes = (await bytesOfPoint({ domain, repository: steady }, point.id)) - before;
    return { merges: done.map(({ merge: each }) => each), versions, grownBytes };
  } catch (error) {
    // The next run does it otherwise.
    await merge.discard().catch(() => undefined);
    throw error;
  }
}

/** The bytes of all files of a point. */
async function bytesOfPoint(
  { repository, domain }: Pick<PruneOptions, "repository" | "domain">,
  id: string,
): Promise<number> {
  await using folder = await repository.openPoint(domain, id);
  let bytes = 0;
  for (const name of await folder.names()) bytes += (await folder.find(name))?.size ?? 0;
  return bytes;
}

export function beganMeanwhile(domain: string, id: string): PreconditionError {
  const message = `a guest has begun to run on point ${id} of ${domain} just now, so it stays: run this again`;
  return new PreconditionError("E_LIVE", message, { details: { domain, point: id } });
}

interface MergedOne {
  readonly merge: DoneMerge;
  /** The name of the disk. */
  readonly before: string;
  readonly disk: DiskManifest;
  /** Guest clusters at the ends of what the store has copied. */
  readonly ends: readonly number[];
}

async function mergeOne(into: StoredMerge, merge: Merge, options: PruneOptions): Promise<MergedOne> {
  const { signal, onProgress, onStep } = options;
  const chain = await chainOf(options, merge);
  const { disk } = chain.links[0];
  return await withLayers(chain, options, async (open) => {
    const plan = await planCopies(open, disk.virtualSize);
    onStep?.(`planned ${merge.disk}`);
    const file = await into.replace(disk.file, partsOf(plan, chain));
    const target = new StoreMergeTarget({ ...open, plan, backing: await backingOf(chain), file });
    const digestsFile = into.nameOf(`${disk.name}.digests`);
    const merged = await mergeDiskInto(
      chain,
      { ...open, clusterSize: plan.geometry.clusterSize },
      {
        ...{ target, digests: into.add(digestsFile), digestsFile, signal },
        onPosition: (position, size) => onProgress?.(merge.disk, position, size),
      },
    );
    onStep?.(`merged ${merge.disk}`);
    const { writtenBytes } = merged;
    const { copiedBytes } = plan;
    return {
      merge: { ...merge, base: null, writtenBytes, copiedBytes },
      before: disk.name,
      disk: merged.disk,
      ends: target.copiedEnds,
    };
  });
}

function partsOf({ geometry, head, stretches, tailPartBytes }: CopyPlan, { links }: DiskChain) {
  const { clusterSize } = geometry;
  const ranges = stretches.flatMap(({ image, first, end }) => {
    const link = links[image];
    if (!link) return [];
    const { point, disk } = link;
    const [start, length] = [first * clusterSize, (end - first) * clusterSize];
    return { point: point.id, file: disk.file, start, length };
  });
  return { headBytes: head * clusterSize, ranges, tailPartBytes };
}

/** Runs `work` with the layers of a merge. */
async function withLayers<T>(
  chain: DiskChain,
  { signal }: Pick<PruneOptions, "signal">,
  work: (open: OpenLayers) => Promise<T>,
): Promise<T> {
  const { repository, domain, links } = chain;
  const layers = await openChain(repository, domain, links, { signal });
  const images = new Map<Layer, Qcow2Reader>();
  try {
    for (const [i, layer] of layers.entries()) {
      const { point, disk } = links[i] ?? links[0];
      await using folder = await repository.openPoint(domain, point.id);
      images.set(layer, await Qcow2Reader.open(folder.at(disk.file), { signal }));
    }
    return await work({ layers, images });
  } finally {
    await closeAll(...layers, ...images.values());
  }
}

/**
 * Reads a merged image as it lies there: its tables against its digest file, and the clusters at the ends of
 * what the store has copied against their digests. So a copy that is of another place is found.
 * @throws {DamageError} they differ
 */
async function prove(
  repository: Repository,
  domain: string,
  id: string,
  disk: DiskManifest,
  ends: readonly number[],
): Promise<void> {
  await using layer = await Layer.open(await repository.openPoint(domain, id), id, disk);
  const { clusterSize, virtualSize } = layer.geometry;
  const onDamage = failOnDamage(layer);
  let next = 0;
  for await (const run of layer.runs(onDamage)) {
    for (; (ends[next] ?? Number.POSITIVE_INFINITY) < run.cluster + run.count; next += 1) {
      const offset = (ends[next] ?? 0) * clusterSize;
      const bytes = Buffer.allocUnsafe(Math.min(clusterSize, virtualSize - offset));
      await layer.read(run, offset, bytes, onDamage);
    }
  }
}
