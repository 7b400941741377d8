import type { RateLimit } from "../pull/rate-limit.js";
import type { Window } from "../pull/window.js";

/**
 * Default for the bytes of guest data that are asked of an object store at the same time, for all disks that
 * are restored to files at once. Gaps that are read too come on top, a quarter of it at most.
 */
const STORE_IN_FLIGHT = 32 * 1024 * 1024;
/** Segments of a disk under way: while one is stored, the other is on its way. */
const STORE_SEGMENTS = 2;
/** Least bytes of a segment: smaller requests cost more. */
const LEAST_SEGMENT = 512 * 1024;

interface StoreWindowOptions {
  /** Its `inFlight` holds for each disk. */
  readonly window?: Window | undefined;
  readonly rateLimit?: RateLimit | undefined;
}

/**
 * How a disk in an object store is read: in few large segments, so that much of what lies side by side in an
 * image is asked for at once. They have no more bytes than the caller allows to be in flight, nor more than a
 * rate limit lets through in a second, as a segment passes it in one burst.
 *
 * @param sharers how many share what is read by default
 */
export function storeWindow(
  sharers: number,
  { window = {}, rateLimit }: StoreWindowOptions,
): { readonly window: Window; readonly preferredBlock: number } {
  const share = STORE_IN_FLIGHT / sharers;
  const inFlight = Math.min(share, window.inFlight ?? share);
  const segment = Math.min(Math.floor(inFlight / STORE_SEGMENTS), rateLimit?.bytesPerSecond ?? share);
  const preferredBlock = Math.max(LEAST_SEGMENT, segment);
  return {
    window: { ...window, inFlight: window.inFlight ?? STORE_SEGMENTS * preferredBlock },
    preferredBlock,
  };
}
