import { setMaxListeners } from "node:events";
import type { PieceSink } from "../../nbd/index.js";
import type { ByteSource } from "../export/open-export.js";
import type { Segment } from "./plan.js";
import type { RateLimit } from "./rate-limit.js";
import { ReorderBuffer } from "./reorder.js";
import { type ReadRange, type RequestLimits, requestsOf } from "./segment.js";
import type { RequestWindow } from "./window.js";

/** Where the bytes of one segment go; `T` tells what became of it. */
export interface Landing<T> extends PieceSink {
  /** What has to be read, in guest order. */
  readonly places: readonly ReadRange[];
  /** When its first byte came; undefined before. */
  readonly firstByte: number | undefined;
  /** All bytes have come: what the segment turned out to be. May be a promise, which is handed on as it is. */
  settle(): T;
}

/** Notes what became of the segments, in guest order. */
export interface Notes<T> {
  /** Resolves when more may be noted; throws what went wrong with what was. */
  room(): Promise<void>;
  note(outcome: T): void;
  /** Everything noted is where it belongs. */
  complete(): Promise<void>;
}

export interface PullOptions<T> {
  readonly source: ByteSource;
  readonly segments: AsyncIterable<Segment>;
  /** Called in the order of the plan; a promise where the landing has to wait for a place. */
  readonly land: (segment: Segment, signal: AbortSignal) => Landing<T> | Promise<Landing<T>>;
  readonly notes: Notes<T>;
  readonly pace: RequestWindow;
  readonly reading: RequestLimits;
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onSegment?: ((done: SegmentDone) => void) | undefined;
}

export interface SegmentDone {
  /** Bytes of the segment that were read. */
  readonly readBytes: number;
  /** As it was planned. */
  readonly segment: Segment;
}

const AT_ONCE: RequestLimits = { readThrough: 0, mostRead: Number.POSITIVE_INFINITY };

/**
 * The data path. Lanes share one lazy plan; each takes a segment and asks for its bytes, which land in the moment in
 * which they come: in the file (`direct-landing.ts`), or in a buffer that is then handed on (`buffered-landing.ts`):
 *
 *     plan -> lane 0:  ask ... pieces land ... settle | ask ... pieces land ... | ...
 *          -> lane 1:     ask ... pieces land ... settle | ask ...                    as many lanes as the pace wants
 *
 * What the segments turned out to be is noted in guest order. When it returns, every byte that the plan named was
 * read with exact coverage and stored, and is noted; the tables are still to be put (`writer.finish`).
 *
 * @throws what the plan, a read, a write or a note threw first; the other lanes have stopped by then
 */
export async function pull<T>(options: PullOptions<T>): Promise<void> {
  const { source, notes, pace } = options;
  const segments = options.segments[Symbol.asyncIterator]();
  const stop = new AbortController();
  const signal = AbortSignal.any(options.signal ? [options.signal, stop.signal] : [stop.signal]);
  // Every read under way listens: many of them are no leak.
  setMaxListeners(0, signal);
  const inOrder = new ReorderBuffer((outcome: T) => notes.note(outcome));

  let planError: unknown;
  /** A plan that fails ends the lanes, but not what they are reading: the connection stays good for another plan. */
  async function takeSegment(): Promise<Segment | undefined> {
    await inOrder.capacity();
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
      const landing = await options.land(segment, signal);
      const reads = requestsOf(landing.places, segment.atOnce ? AT_ONCE : options.reading);
      const bytes = reads.reduce((sum, { length }) => sum + length, 0);
      await options.rateLimit?.take(bytes, signal);

      const asked = performance.now();
      await source.readPieces(reads, landing, { signal });
      inOrder.put(segment.index, landing.settle());

      pace.measured({ bytes, asked, firstByte: landing.firstByte, done: performance.now() });
      options.onSegment?.({ readBytes: bytes, segment });
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
  await Promise.resolve(segments.return?.()).catch((error: unknown) => {
    planError ??= error;
  });
  signal.throwIfAborted();
  if (planError !== undefined) throw planError;
  await notes.complete();
}
