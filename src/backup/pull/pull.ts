/**
 * The data path, and the room's main file. An export or another source is described by extents (`export/`); `plan.ts` turns
 * them into segments; lanes (`lanes.ts`) take one segment each and ask for its bytes, as much at a time as `window.ts` says;
 * a landing (`direct-landing.ts`, `buffered-landing.ts`) puts them where they belong; the destination (`plain-store.ts`,
 * `compressed-store.ts`) records what each segment turned out to be, and makes the file an image at the end.
 *
 * Read this page first, then `pull-image.ts`, which puts the parts together, and `segment.ts` for the words. This room knows
 * neither repositories nor libvirt, and it never reads back what it wrote.
 */

import type { PieceSink } from "../../nbd/index.js";
import type { ByteSource } from "../export/open-export.js";
import { type LaneOptions, type Recorder, runLanes } from "./lanes.js";
import type { RateLimit } from "./rate-limit.js";
import { type ReadRange, type RequestLimits, requestsOf, type Segment } from "./segment.js";
import type { RequestWindow } from "./window.js";

/** Where the bytes of one segment go; `T` tells what became of the segment. */
export interface Landing<T> extends PieceSink {
  /** What has to be read, in guest order. */
  readonly ranges: readonly ReadRange[];
  /** When its first byte came; undefined before. */
  readonly firstByte: number | undefined;
  /** Called when all bytes have come: what the segment turned out to be. A promise is handed on as it is. */
  outcome(): T;
}

/** What a pull fills: it gives each segment a landing, and records the outcomes in guest order. */
export interface Destination<T> extends Recorder<T> {
  /** Called in the order of the plan; a promise where the segment has to wait for a buffer. */
  landing(segment: Segment, signal: AbortSignal): Landing<T> | Promise<Landing<T>>;
}

export interface PullOptions<T> extends Pick<LaneOptions<T>, "segments" | "signal" | "onSegment"> {
  readonly source: ByteSource;
  readonly into: Destination<T>;
  readonly window: RequestWindow;
  readonly limits: RequestLimits;
  readonly rateLimit?: RateLimit | undefined;
}

/**
 * Reads all that a plan names and stores it. The bytes of a segment are stored at the moment they arrive, in the file or in
 * a buffer:
 *
 *     plan -> lane 0:  request ... pieces land ... outcome | request ... pieces land ... | ...
 *          -> lane 1:     request ... pieces land ... outcome | request ...           as many lanes as the window allows
 *
 * When it returns, every byte that the plan named was read with exact coverage, stored and recorded. The image still lacks
 * its tables, which `finish` of the store writes.
 *
 * @throws what the plan, a read, a write or the destination threw first; the other lanes have stopped by then
 */
export async function pull<T>({
  source,
  into,
  window,
  limits,
  rateLimit,
  ...plan
}: PullOptions<T>): Promise<void> {
  await runLanes<T>({
    ...plan,
    recorder: into,
    lanes: () => window.lanes,
    store: async (segment, signal) => {
      const landing = await into.landing(segment, signal);
      const { readThrough, mostRead } = limits;
      const requests = requestsOf(landing.ranges, { readThrough, mostRead: segment.mostRead ?? mostRead });
      const readBytes = requests.reduce((sum, { length }) => sum + length, 0);
      await rateLimit?.take(readBytes, signal);

      const asked = performance.now();
      await source.readPieces(requests, landing, { signal });
      const outcome = landing.outcome();
      window.measured({ bytes: readBytes, asked, firstByte: landing.firstByte, done: performance.now() });
      return { outcome, readBytes };
    },
  });
}
