import { setMaxListeners } from "node:events";
import { anySignal } from "../../nbd/index.js";
import { ReorderBuffer } from "./reorder.js";
import type { Segment } from "./segment.js";

/** Takes the outcomes of segments, in guest order. */
export interface Recorder<T> {
  /** Resolves when more may be recorded, or rejects with the first failure of recording. */
  capacity(): Promise<void>;
  /** Takes the next outcome in guest order. */
  record(outcome: T): void;
  /** Resolves when everything that was recorded is written, or rejects with the first failure. */
  complete(): Promise<void>;
}

interface SegmentDone {
  /** Bytes that were read for the segment, including clean bytes between its ranges. */
  readonly readBytes: number;
  /** As planned. */
  readonly segment: Segment;
}

export interface LaneOptions<T> {
  readonly segments: AsyncIterable<Segment>;
  readonly recorder: Recorder<T>;
  /** How many lanes should run. Called again after each segment; must not fall. */
  readonly lanes: () => number;
  /**
   * Reads and stores one segment. An outcome that is a promise goes to the recorder without being awaited.
   * `signal` is aborted when the work is given up.
   */
  readonly store: (segment: Segment, signal: AbortSignal) => Promise<StoredSegment<T>>;
  /**
   * Whether lanes finish their segments if the plan fails, so that the source can serve another plan;
   * default: they are aborted.
   */
  readonly outlivesPlan?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onSegment?: ((done: SegmentDone) => void) | undefined;
}

interface StoredSegment<T> {
  readonly outcome: T;
  /** Bytes that were read for it. */
  readonly readBytes: number;
}

/**
 * Runs lanes that share one lazy plan: each takes a segment, stores it and takes the next one. Outcomes are
 * recorded in guest order.
 *
 * @throws the first error of the plan, a segment or the recorder; all lanes have stopped by then
 */
export async function runLanes<T>(options: LaneOptions<T>): Promise<void> {
  const { recorder } = options;
  const segments = options.segments[Symbol.asyncIterator]();
  const stop = new AbortController();
  const signal = anySignal(options.signal, stop.signal);
  // Each read in flight listens to it, so a large number of listeners is not a leak.
  setMaxListeners(0, signal);
  const reorder = new ReorderBuffer((outcome: T) => recorder.record(outcome));

  const errors: unknown[] = [];
  /** After the signal has fired, an error is a consequence of it. */
  function failed(error: unknown): void {
    errors.push(signal.aborted ? signal.reason : error);
  }
  async function nextSegment(): Promise<Segment | undefined> {
    await reorder.capacity();
    await recorder.capacity();
    try {
      const next = await segments.next();
      return next.done ? undefined : next.value;
    } catch (error) {
      if (!options.outlivesPlan) throw error;
      failed(error);
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
    failed(error);
    stop.abort(error);
    reorder.giveUp();
  }
  startLanes();
  // More lanes may start while these are awaited.
  for (let i = 0; i < lanes.length; i += 1) await lanes[i];
  await Promise.resolve(segments.return?.()).catch(failed);
  if (errors.length > 0) throw errors[0];
  signal.throwIfAborted();
  await recorder.complete();
}
