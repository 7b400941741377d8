import { setMaxListeners } from "node:events";
import { ReorderBuffer } from "./reorder.js";
import type { Segment } from "./segment.js";

/** Takes what became of the segments, in guest order. */
export interface Recorder<T> {
  /** Resolves when more may be recorded; throws what went wrong with what was. */
  capacity(): Promise<void>;
  record(outcome: T): void;
  /** Resolves when everything that was recorded is where it belongs. */
  complete(): Promise<void>;
}

interface SegmentDone {
  /** Bytes of the segment that were read. */
  readonly readBytes: number;
  /** As it was planned. */
  readonly segment: Segment;
}

export interface LaneOptions<T> {
  readonly segments: AsyncIterable<Segment>;
  readonly recorder: Recorder<T>;
  /** How many segments may be under way at a time. Asked again after each segment; never falls. */
  readonly lanes: () => number;
  /**
   * Stores one segment. An outcome that is a promise is handed on as it is. `signal` fires when the work is given up.
   */
  readonly store: (segment: Segment, signal: AbortSignal) => Promise<StoredSegment<T>>;
  readonly signal?: AbortSignal | undefined;
  readonly onSegment?: ((done: SegmentDone) => void) | undefined;
}

interface StoredSegment<T> {
  readonly outcome: T;
  /** Bytes that were read for it. */
  readonly readBytes: number;
}

/**
 * Has lanes share one lazy plan: each takes a segment, stores it, and takes the next. Outcomes are recorded in guest order.
 *
 * @throws what the plan, a segment or the recorder threw first; the other lanes have stopped by then
 */
export async function runLanes<T>(options: LaneOptions<T>): Promise<void> {
  const { recorder } = options;
  const segments = options.segments[Symbol.asyncIterator]();
  const stop = new AbortController();
  const signal = AbortSignal.any(options.signal ? [options.signal, stop.signal] : [stop.signal]);
  // Each read under way listens, so a large number of listeners is no leak.
  setMaxListeners(0, signal);
  const reorder = new ReorderBuffer((outcome: T) => recorder.record(outcome));

  let planError: unknown;
  /** A plan that fails ends the lanes, but not what they are reading: the connection stays good for another plan. */
  async function nextSegment(): Promise<Segment | undefined> {
    await reorder.capacity();
    await recorder.capacity();
    try {
      const next = await segments.next();
      return next.done ? undefined : next.value;
    } catch (error) {
      planError ??= error;
      return undefined;
    }
  }

  async function lane(): Promise<void> {
    for (let segment = await nextSegment(); segment; segment = await nextSegment()) {
      signal.throwIfAborted();
      const { outcome, readBytes } = await options.store(segment, signal);
      reorder.put(segment.index, outcome);
      options.onSegment?.({ readBytes, segment });
      startLanes();
    }
  }

  const lanes: Promise<void>[] = [];
  function startLanes(): void {
    while (lanes.length < options.lanes()) lanes.push(lane().catch(stopOthers));
  }
  function stopOthers(error: unknown): void {
    stop.abort(error);
    reorder.giveUp();
  }
  startLanes();
  // Lanes may be added while these are awaited.
  for (let i = 0; i < lanes.length; i += 1) await lanes[i];
  await Promise.resolve(segments.return?.()).catch((error: unknown) => {
    planError ??= error;
  });
  signal.throwIfAborted();
  if (planError !== undefined) throw planError;
  await recorder.complete();
}
