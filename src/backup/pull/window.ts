import { CONNECTIONS } from "../export/open-export.js";
import type { RequestLimits } from "./segment.js";

/** How much is in flight at a time, in bytes. A property that is left out is chosen, and adapted to the server. */
export interface Window {
  /** Most bytes of one request; a cluster at the least. */
  readonly requestSize?: number | undefined;
  /** Most bytes to be stored of all requests in flight; clean bytes that are read along come on top. */
  readonly inFlight?: number | undefined;
  /** Number of connections, where the server allows several. */
  readonly connections?: number | undefined;
}

/** A server whose answers take longer is far: its speed depends on how many requests it works on at a time. */
const FAR_MS = 4;
const MOST_CONNECTIONS = 4;
/** More connections than one for so much were measured to cost a fifth. */
const BYTES_OF_A_CONNECTION = 8 * 1024 * 1024;
/** Least number of bytes in flight to a far server. */
const FAR_IN_FLIGHT = 16 * 1024 * 1024;
/** Least number of bytes in flight. Enough for a unix socket: less starves it, more costs cache. */
const LEAST_IN_FLIGHT = 4 * 1024 * 1024;
/** Most bytes in flight, for far servers. As bytes are stored when they arrive, this costs the server memory, not us. */
const MOST_IN_FLIGHT = 64 * 1024 * 1024;

/** Segments that are read one after the other at the beginning: the first finds us, and perhaps the server, cold. */
const SCOUTS = 4;
/** How often the rate is looked at. */
const SPAN_MS = 50;
/** Twice what the line and the server hold: one half travels while the server works on the other. */
const HEADROOM = 2;

/**
 * How many lanes there should be: as many as keep the server and the line busy, and no more, since requests that wait in a
 * queue only cost memory and cache. One lane starts alone, so that its first answers tell how far the server is, with empty
 * queues. For a near server the least is enough; for a far one the bytes in flight are the rate times the latency.
 */
export class RequestWindow {
  readonly #least: number;
  readonly #most: number;
  readonly #segmentBytes: number;
  readonly #fewestConnections: number;
  readonly #window: Window;
  #lanes = 1;
  #latency = Number.POSITIVE_INFINITY;
  #scouts = 0;
  #since: number | undefined;
  #bytes = 0;

  constructor(window: Window, segmentBytes: number, fewestConnections = CONNECTIONS) {
    this.#window = window;
    this.#segmentBytes = segmentBytes;
    this.#fewestConnections = fewestConnections;
    this.#least = lanesOf(window.inFlight ?? LEAST_IN_FLIGHT, segmentBytes);
    this.#most = Math.max(this.#least, lanesOf(window.inFlight ?? MOST_IN_FLIGHT, segmentBytes));
    // A bound that the caller chose needs no scout.
    if (window.inFlight !== undefined) this.#lanes = this.#least;
  }

  /** Never falls. */
  get lanes(): number {
    return this.#lanes;
  }

  /** How many connections there should be, where the server allows several. Never falls. */
  get connections(): number {
    const needed = Math.ceil((this.#lanes * this.#segmentBytes) / BYTES_OF_A_CONNECTION);
    return this.#window.connections ?? Math.max(this.#fewestConnections, Math.min(MOST_CONNECTIONS, needed));
  }

  /** Takes the times of a finished segment, in milliseconds of `performance.now()`. */
  measured(segment: {
    readonly bytes: number;
    readonly asked: number;
    readonly firstByte: number | undefined;
    readonly done: number;
  }): void {
    const { bytes, asked, firstByte, done } = segment;
    // The quickest answer of all comes nearest to the way there and back; the others have waited for something.
    if (firstByte !== undefined) this.#latency = Math.min(this.#latency, firstByte - asked);
    if (this.#scouts < SCOUTS) {
      // A segment of nothing but zeroes tells nothing, and takes no time.
      if (firstByte === undefined) return;
      this.#scouts += 1;
      if (this.#scouts < SCOUTS) return;
      const start = this.#isFar ? lanesOf(FAR_IN_FLIGHT, this.#segmentBytes) : this.#least;
      this.#lanes = Math.min(this.#most, Math.max(this.#least, start));
    }
    this.#bytes += bytes;
    this.#since ??= asked;
    const span = done - this.#since;
    if (!this.#isFar || span < SPAN_MS) return;
    const onTheWay = (this.#bytes / span) * this.#latency;
    const wanted = Math.ceil((HEADROOM * onTheWay) / this.#segmentBytes);
    this.#lanes = Math.min(this.#most, Math.max(this.#lanes, wanted));
    this.#since = done;
    this.#bytes = 0;
  }

  get #isFar(): boolean {
    return this.#scouts === SCOUTS && this.#latency > FAR_MS;
  }
}

/** How many lanes a window has room for. */
function lanesOf(inFlight: number, segmentBytes: number): number {
  return Math.max(1, Math.floor(inFlight / segmentBytes));
}

/** Measured: smaller requests cost more of everything (docs/performance.md). */
const REQUEST_SIZE = 512 * 1024;

/**
 * A server that uses glibc's malloc gets new memory from the kernel for each request of 1 MiB, at thrice the time, until it
 * has given back a larger piece; from then on it keeps what it has, and large requests cost it less than small ones.
 */
const LARGER_REQUEST_SIZE = 1024 * 1024;

/** Size of the one request after which such a server keeps its memory. */
const FIRST_REQUEST_SIZE = 8 * 1024 * 1024;

/** How much one request asks for: whole clusters, and whole blocks as the server prefers them. */
export function requestBytesOf(window: Window, clusterSize: number, preferredBlock = 1): number {
  const wanted = window.requestSize ?? Math.max(REQUEST_SIZE, preferredBlock);
  return Math.max(wanted, clusterSize);
}

interface RequestSizeOptions {
  readonly window: Window;
  readonly clusterSize: number;
  readonly preferredBlock?: number | undefined;
  /** The server answers so much at once; left out: larger requests bring nothing. */
  readonly maximum?: number | undefined;
  readonly readThrough: number;
}

/**
 * How much of an export one request asks for, in bytes. The first stretch that is long enough is read by one large request;
 * once that is answered, requests grow to {@link most}. A size or a bound that the caller chose stays as it is.
 */
export class RequestSizes implements RequestLimits {
  readonly readThrough: number;
  /** The size that requests may grow to. */
  readonly most: number;
  /** Size of the one large request, which the plan makes a segment of; undefined where there is none. */
  readonly firstSegmentBytes: number | undefined;
  #mostRead: number;

  constructor({ window, clusterSize, preferredBlock, maximum = 0, readThrough }: RequestSizeOptions) {
    this.readThrough = readThrough;
    this.#mostRead = requestBytesOf(window, clusterSize, preferredBlock);
    const isChosen = window.requestSize !== undefined || window.inFlight !== undefined;
    const grows = !isChosen && maximum >= FIRST_REQUEST_SIZE && this.#mostRead < LARGER_REQUEST_SIZE;
    this.firstSegmentBytes = grows ? FIRST_REQUEST_SIZE : undefined;
    this.most = grows ? LARGER_REQUEST_SIZE : this.#mostRead;
  }

  get mostRead(): number {
    return this.#mostRead;
  }

  /** Called when the one large request has been answered. */
  enlarge(): void {
    this.#mostRead = this.most;
  }
}
