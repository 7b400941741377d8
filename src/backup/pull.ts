import { setMaxListeners } from "node:events";
import type { PieceSink, Stretch } from "../nbd/index.js";
import type { ClusterRun } from "./image/image.js";
import { InOrder } from "./in-order.js";
import type { Pace } from "./pace.js";
import { type Place, readsOf } from "./places.js";
import type { Segment } from "./plan.js";
import type { RateLimit } from "./rate-limit.js";

/** Where bytes come from: an NBD client, or the chain of a restore. */
export interface ByteSource {
  /** Hands all bytes of the stretches to `sink`, in pieces, or throws; none any more once `signal` has fired. */
  readPieces(
    stretches: readonly Stretch[],
    sink: PieceSink,
    options: { readonly signal: AbortSignal },
  ): Promise<void>;
}

/** Where the bytes of one segment go. */
export interface Landing extends PieceSink {
  /** What has to be read, in guest order. */
  readonly places: readonly Place[];
  /** When its first byte came; undefined before. */
  readonly firstByte: number | undefined;
  /** All bytes have come: what the segment turned out to be, in guest order. */
  settle(): ClusterRun[];
}

/** Notes what was stored, in guest order. */
export interface Notes {
  /** Resolves when more may be noted; throws what went wrong with what was. */
  room(): Promise<void>;
  note(runs: readonly ClusterRun[]): void;
  /** Everything noted is where it belongs. */
  complete(): Promise<void>;
}

export interface PullOptions {
  readonly source: ByteSource;
  readonly segments: AsyncIterable<Segment>;
  readonly land: (segment: Segment) => Landing;
  readonly notes: Notes;
  readonly pace: Pace;
  /** Bytes between two places that are rather read along than left out; 0 where clean bytes can't be read. */
  readonly readThrough: number;
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onSegment?: ((done: SegmentDone) => void) | undefined;
}

/** Bytes. */
export interface SegmentDone {
  /** Bytes of the segment that were read. */
  readonly readBytes: number;
  /** What it turned out to be. */
  readonly runs: readonly ClusterRun[];
}

/**
 * The data path. Lanes share one lazy plan; each takes a segment and asks for its bytes, which land in the file in the
 * moment in which they come (`write-through.ts`):
 *
 *     plan -> lane 0:  ask ... pieces land ... settle | ask ... pieces land ... | ...
 *          -> lane 1:     ask ... pieces land ... settle | ask ...                    as many lanes as the pace wants
 *
 * What the segments turned out to be is noted in guest order. When it returns, every byte that the plan named was
 * read with exact coverage and stored, and is noted; the tables are still to be put (`writer.finish`).
 *
 * @throws what the plan, a read, a write or a note threw first; the other lanes have stopped by then
 */
export async function pull(options: PullOptions): Promise<void> {
  const { source, notes, pace } = options;
  const segments = options.segments[Symbol.asyncIterator]();
  const stop = new AbortController();
  const signal = AbortSignal.any(options.signal ? [options.signal, stop.signal] : [stop.signal]);
  // Every read under way listens: many of them are no leak.
  setMaxListeners(0, signal);
  const inOrder = new InOrder((runs: readonly ClusterRun[]) => notes.note(runs));

  let planError: unknown;
  /** A plan that fails ends the lanes, but not what they are reading: the connection stays good for another plan. */
  async function takeSegment(): Promise<Segment | undefined> {
    await inOrder.room();
    await notes.room();
    try {
      const next = await segments.next();
      return next.done ? undefined : next.value;
    } catch (error) {
      planError ??= error;
      return undefined;
    }
  }

  async function lane(): Promise<void> {
    for (let segment = await takeSegment(); segment; segment = await takeSegment()) {
      signal.throwIfAborted();
      const landing = options.land(segment);
      const reads = readsOf(landing.places, options.readThrough);
      const bytes = reads.reduce((sum, { length }) => sum + length, 0);
      await options.rateLimit?.take(bytes, signal);

      const asked = performance.now();
      await source.readPieces(reads, landing, { signal });
      const runs = landing.settle();
      inOrder.put(segment.index, runs);

      pace.note({ bytes, asked, firstByte: landing.firstByte, done: performance.now() });
      options.onSegment?.({ readBytes: bytes, runs });
      startLanes();
    }
  }

  const lanes: Promise<void>[] = [];
  function startLanes(): void {
    while (lanes.length < pace.lanes) lanes.push(lane().catch(stopOthers));
  }
  function stopOthers(error: unknown): void {
    stop.abort(error);
    inOrder.giveUp();
  }
  startLanes();
  // Lanes may be added while these are awaited.
  for (let i = 0; i < lanes.length; i += 1) await lanes[i];
  await segments.return?.();
  signal.throwIfAborted();
  if (planError !== undefined) throw planError;
  await notes.complete();
}
