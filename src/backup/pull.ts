import { setMaxListeners } from "node:events";
import { type Digester, digestsOf } from "./digest.js";
import type { DigestFileWriter } from "./digest-file.js";
import { type Geometry, type ImageWriter, slotsOf } from "./image/image.js";
import { InOrder } from "./in-order.js";
import type { Segment } from "./plan.js";
import type { RateLimit } from "./rate-limit.js";
import { adjacentWrites, dataStretches, type SettledRun, settle } from "./settle.js";

/** Where bytes come from: an NBD client, or the chain of a restore. */
export interface ByteSource {
  /** Fills `target` from guest offset `offset`, wholly, or throws. */
  read(offset: number, target: Uint8Array, options: { readonly signal: AbortSignal }): Promise<void>;
}

export interface PullOptions {
  readonly source: ByteSource;
  readonly segments: AsyncIterable<Segment>;
  readonly writer: ImageWriter;
  /** Nothing lies below the image, so zeroes need not be said: what is not stored reads as zeroes. */
  readonly complete: boolean;
  /** Left out where no digests are wanted. */
  readonly digests?: { readonly digester: Digester; readonly file: DigestFileWriter } | undefined;
  /** Segments under way at once; each lane owns one buffer of `segmentBytes` (at least one cluster). */
  readonly lanes: number;
  readonly segmentBytes: number;
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onSegment?: ((done: SegmentDone) => void) | undefined;
}

/** Bytes. */
export interface SegmentDone {
  /** Bytes of the segment that were read. */
  readonly readBytes: number;
  /** Bytes of it that had to be stored. */
  readonly storedBytes: number;
  /** Guest offset at which the segment ends. */
  readonly position: number;
}

/**
 * The data path. Lanes share one lazy plan; each takes a segment, reads it into its own buffer, looks for zeroes,
 * writes the rest to its place in the file, and digests it while the write is under way:
 *
 *     plan -> lane 0:  read  |write+digest|  read  | ...
 *          -> lane 1:     read  |write+digest| ...        at most lanes * segmentBytes in flight
 *
 * Outcomes reach the tables and the digest file in guest order. When it returns, every byte that the plan named was
 * read with exact coverage and written; the tables are still to be put (`writer.finish`).
 *
 * @throws what the plan, a read or a write threw first; the other lanes have stopped by then
 */
export async function pull(options: PullOptions): Promise<void> {
  const { source, writer, digests } = options;
  const { geometry } = writer;
  const segments = options.segments[Symbol.asyncIterator]();
  const stop = new AbortController();
  const signal = AbortSignal.any(options.signal ? [options.signal, stop.signal] : [stop.signal]);
  // Every read under way listens: many of them are no leak.
  setMaxListeners(0, signal);
  const inOrder = new InOrder((outcomes: readonly Outcome[]) => {
    for (const { run, digests: made } of outcomes) {
      writer.addRun(run);
      digests?.file.add(run, made);
    }
  });

  let planError: unknown;
  /** A plan that fails ends the lanes, but not what they are reading: the connection stays good for another plan. */
  async function takeSegment(): Promise<Segment | undefined> {
    await inOrder.room();
    try {
      const next = await segments.next();
      return next.done ? undefined : next.value;
    } catch (error) {
      planError ??= error;
      return undefined;
    }
  }

  async function lane(): Promise<void> {
    // Owned by this lane: the source fills it, the writer borrows it until its promise settles.
    const buffer = Buffer.allocUnsafeSlow(Math.max(options.segmentBytes, geometry.clusterSize));
    for (let segment = await takeSegment(); segment; segment = await takeSegment()) {
      signal.throwIfAborted();
      await options.rateLimit?.take(segment.clusters * geometry.clusterSize, signal);

      const reads = readsOf(segment, buffer, geometry);
      await Promise.all(reads.map(({ offset, target }) => source.read(offset, target, { signal })));

      const settled = Array.from(settle(segment, buffer, writer));
      const writes = Array.from(adjacentWrites(settled, buffer));
      const writing = Promise.all(writes.map((write) => writer.writeData(write.hostOffset, write.bytes)));
      const outcomes = settled.filter(isWorthNoting).map(digested);
      await writing;

      inOrder.put(segment.index, outcomes);
      options.onSegment?.({
        readBytes: sumOf(reads.map(({ target }) => target.length)),
        storedBytes: sumOf(writes.map(({ bytes }) => bytes.length)),
        position: endOf(segment, geometry),
      });
    }
  }

  const isWorthNoting = ({ run }: SettledRun): boolean => !(options.complete && run.kind === "zero");
  const digested = ({ run, bytes }: SettledRun): Outcome => {
    const none = digests === undefined || run.kind === "zero" || bytes.length === 0;
    return { run, digests: none ? NO_DIGESTS : digestsOf(digests.digester, run, bytes, geometry) };
  };
  const stopOthers = (error: unknown): void => {
    stop.abort(error);
    inOrder.giveUp();
  };
  await Promise.all(Array.from({ length: options.lanes }, () => lane().catch(stopOthers)));
  await segments.return?.();
  signal.throwIfAborted();
  if (planError !== undefined) throw planError;
}

/** A run as it ended up, with its digests. */
interface Outcome {
  readonly run: SettledRun["run"];
  readonly digests: Buffer;
}

const NO_DIGESTS = Buffer.alloc(0);

interface Read {
  readonly offset: number;
  readonly target: Buffer;
}

/** What to read for a segment, and into which part of the lane's buffer. */
function readsOf(segment: Segment, buffer: Buffer, geometry: Geometry): Read[] {
  const { clusterSize, virtualSize } = geometry;
  const list: Read[] = [];
  let slot = 0;
  for (const run of segment.runs) {
    const offset = run.cluster * clusterSize;
    const at = slot * clusterSize;
    if (run.kind === "data") {
      const length = Math.min(run.count * clusterSize, virtualSize - offset);
      list.push({ offset, target: buffer.subarray(at, at + length) });
    } else if (run.kind === "partial" && run.dataMask !== 0) {
      buffer.fill(0, at, at + clusterSize);
      for (const stretch of dataStretches(run, geometry)) {
        const target = buffer.subarray(at + stretch.offset, at + stretch.offset + stretch.length);
        list.push({ offset: offset + stretch.offset, target });
      }
    }
    slot += slotsOf(run);
  }
  return list;
}

/** Guest offset at which a segment ends. */
function endOf(segment: Segment, { clusterSize, virtualSize }: Geometry): number {
  const last = segment.runs.at(-1);
  return last === undefined ? 0 : Math.min((last.cluster + last.count) * clusterSize, virtualSize);
}

function sumOf(numbers: readonly number[]): number {
  return numbers.reduce((sum, number) => sum + number, 0);
}
