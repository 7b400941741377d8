import type { RequestLimits } from "./segment.js";
import type { Window } from "./window.js";

/** Measured: smaller requests cost more of everything (docs/performance.md). */
const REQUEST_SIZE = 512 * 1024;
/**
 * A server that uses glibc's malloc gets new memory from the kernel for each request of 1 MiB, at thrice the time, until it
 * has given back a larger piece; from then on it keeps what it has, and large requests cost it less than small ones.
 */
const LARGER_REQUEST_SIZE = 1024 * 1024;
/** Of the one request that makes such a server keep its memory. */
const AT_ONCE = 8 * 1024 * 1024;

/** How much one request asks for: whole clusters, and whole blocks as the server prefers them. */
export function requestBytesOf(window: Window, clusterSize: number, preferredBlock = 1): number {
  const wanted = window.requestSize ?? Math.max(REQUEST_SIZE, preferredBlock);
  return Math.max(wanted, clusterSize);
}

export interface RequestSizeOptions {
  readonly window: Window;
  readonly clusterSize: number;
  readonly preferredBlock?: number | undefined;
  /** The server answers so much at once; left out: larger requests bring nothing. */
  readonly maximum?: number | undefined;
  readonly readThrough: number;
}

/**
 * How much of an export one request asks for, in bytes. The first stretch that is long enough is asked for at once; when
 * that has come, so may be more than before. Who says how much shall be asked for, or be under way, gets no more than that.
 */
export class RequestSizes implements RequestLimits {
  readonly readThrough: number;
  /** What it may come to. */
  readonly most: number;
  /** Of the one large request, which the plan makes a segment of; undefined where there is to be none. */
  readonly atOnceBytes: number | undefined;
  #mostRead: number;

  constructor({ window, clusterSize, preferredBlock, maximum = 0, readThrough }: RequestSizeOptions) {
    this.readThrough = readThrough;
    this.#mostRead = requestBytesOf(window, clusterSize, preferredBlock);
    const isChosen = window.requestSize !== undefined || window.inFlight !== undefined;
    const grows = !isChosen && maximum >= AT_ONCE && this.#mostRead < LARGER_REQUEST_SIZE;
    this.atOnceBytes = grows ? AT_ONCE : undefined;
    this.most = grows ? LARGER_REQUEST_SIZE : this.#mostRead;
  }

  get mostRead(): number {
    return this.#mostRead;
  }

  /** What was to be asked for at once has come. */
  grow(): void {
    this.#mostRead = this.most;
  }
}
