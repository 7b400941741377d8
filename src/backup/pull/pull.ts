/**
 * The data path: it reads an export, or another disk, and stores it in a new image. This is the room's main
 * file. Read this comment first, then the files in the order in which the data passes through them:
 *
 *     pull-image.ts         one export into one image: puts all the other parts together
 *     plan.ts               extents become segments, cut at cluster boundaries
 *     segment.ts            what a segment is, its requests, and its runs after the bytes have arrived
 *     window.ts             how large requests are, and how many lanes run
 *     lanes.ts              each lane takes a segment, stores it and takes the next one
 *     pull.ts               what a lane does with its segment: the requests go out, the pieces arrive
 *     range-landing.ts      sorts pieces into the ranges that were planned, and counts them
 *     direct-landing.ts     writes them to the file when they arrive
 *     buffered-landing.ts   or collects them in a buffer, to be compressed or written later
 *     reorder.ts            puts the outcomes of the segments back into guest order
 *     image-ledger.ts       records the outcomes in the image's tables and in the digest file
 *     image-store.ts        what a pull fills: plain-store.ts, or compressed-store.ts with compression
 *     open-store.ts         which of both, new or with what a killed run has left
 *
 * A pull that may be continued writes a journal beside its image. `image-journal.ts` collects what is stored,
 * `journal-entry.ts` is a record of it, `journal-file.ts` the file of records. The next run reads them:
 * `left-journal.ts` first, with `left-header.ts` (is it of this image?) and `left-entry.ts` (what is stored).
 *
 * `create-image.ts`, `compressible.ts`, `buffer-pool.ts` and `rate-limit.ts` are helpers. The restore room
 * uses parts of this room with a chain of images as the source, or with a device or an export as the
 * destination.
 *
 * This room knows neither libvirt nor repositories and chains, and changes no file but its own: a new one, or
 * one that a killed run of the same job has left. Digests are made on other threads: by the digest room from
 * the new file, or by the compress room from the buffer.
 */

import type { PieceSink } from "../../nbd/index.js";
import type { ByteSource } from "../export/open-export.js";
import { type LaneOptions, type Recorder, runLanes } from "./lanes.js";
import type { RateLimit } from "./rate-limit.js";
import { type ReadRange, type RequestBounds, requestsOf, type Segment } from "./segment.js";
import type { RequestWindow } from "./window.js";

/** Where the bytes of one segment go. `T` is the outcome of the segment. */
export interface Landing<T> extends PieceSink {
  /** The stretches of the guest to be read, in guest order. */
  readonly ranges: readonly ReadRange[];
  /** When the first byte arrived, in milliseconds of `performance.now()`; undefined before. */
  readonly firstByte: number | undefined;
  /** Returns the segment's outcome. Called when all bytes have arrived. A promise is not awaited here. */
  outcome(): T;
}

/** What a pull fills. It gives each segment a landing, and records the outcomes in guest order. */
export interface Destination<T> extends Recorder<T> {
  /** Called in the order of the plan. Returns a promise if the segment may have to wait for a buffer. */
  landing(segment: Segment, signal: AbortSignal): Landing<T> | Promise<Landing<T>>;
}

export interface PullOptions<T> extends Pick<LaneOptions<T>, "segments" | "signal" | "onSegment"> {
  readonly source: ByteSource;
  readonly into: Destination<T>;
  readonly window: RequestWindow;
  readonly requestSizes: RequestBounds;
  readonly rateLimit?: RateLimit | undefined;
  /**
   * Called with the number of connections that there should be, before each segment but the first: a disk of
   * one segment needs no second handshake.
   */
  readonly widen?: ((connections: number) => void) | undefined;
}

/**
 * Reads everything in the plan and stores it. The bytes of a segment are stored when they arrive, in the file
 * or in a buffer. As many lanes run as the window allows:
 *
 *     plan -> lane 0:  request ... pieces land ... outcome | request ... pieces land ... | ...
 *          -> lane 1:     request ... pieces land ... outcome | request ...
 *
 * When it returns, every byte in the plan was read with exact coverage, stored and recorded. An image has no
 * tables yet: its store's `finish` writes them.
 *
 * @throws the first error of the plan, a read, a write or the destination; all lanes have stopped by then
 */
export async function pull<T>({
  source,
  into,
  window,
  requestSizes,
  rateLimit,
  widen,
  ...lanes
}: PullOptions<T>): Promise<void> {
  await runLanes<T>({
    ...lanes,
    recorder: into,
    // The connection stays usable, for a plan with smaller clusters.
    outlivesPlan: true,
    lanes: () => window.lanes,
    store: async (segment, signal) => {
      const landing = await into.landing(segment, signal);
      const { readThrough, mostRead } = requestSizes;
      const requests = requestsOf(landing.ranges, { readThrough, mostRead: segment.mostRead ?? mostRead });
      const readBytes = requests.reduce((sum, { length }) => sum + length, 0);
      await rateLimit?.take(readBytes, signal);
      if (segment.index > 0) widen?.(window.connections);

      const asked = performance.now();
      await source.readPieces(requests, landing, { signal });
      const outcome = landing.outcome();
      window.measured({ bytes: readBytes, asked, firstByte: landing.firstByte, done: performance.now() });
      return { outcome, readBytes };
    },
  });
}
