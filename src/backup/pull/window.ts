import { CONNECTIONS } from "../export/open-export.js";
import type { RequestBounds } from "./segment.js";

/**
 * Limits on what is in flight. The program chooses those that are undefined and adapts them to the server.
 */
export interface Window {
  /** Most bytes of one request; less than a cluster counts as a cluster. */
  readonly requestSize?: number | undefined;
  /** Most bytes in flight that will be stored. Clean bytes that requests also read don't count. */
  readonly inFlight?: number | undefined;
  /** Number of connections, if the server allows several. */
  readonly connections?: number | undefined;
  /** Most connections that the program may choose; never more than 4. */
  readonly mostConnections?: number | undefined;
}

/** A server with a longer latency is far: its throughput depends on the number of requests in flight. */
const FAR_MS = 4;
const MOST_CONNECTIONS = 4;
/** Bytes in flight for each connection. More connections than that were measured to cost a fifth. */
const BYTES_OF_A_CONNECTION = 8 * 1024 * 1024;
/** Least bytes in flight to a far server. */
const FAR_IN_FLIGHT = 16 * 1024 * 1024;
/** Least bytes in flight. Enough for a Unix socket: less starves it, more costs cache. */
const LEAST_IN_FLIGHT = 4 * 1024 * 1024;
/**
 * Most bytes in flight, for far servers. Bytes are stored when they arrive, so only the server needs memory.
 */
const MOST_IN_FLIGHT = 64 * 1024 * 1024;

/** Segments read one after the other at the start. At the first one, caches of both sides may be cold. */
const SCOUTS = 4;
/** Shortest time over which the rate is measured. */
const SPAN_MS = 50;
/** Factor for rate times latency: one half of the bytes travels while the server works on the other. */
const HEADROOM = 2;

/**
 * Decides how many lanes run: enough to keep the server and the line busy, and no more, because requests
 * that wait in a queue only cost memory and cache. One lane starts alone, so the first answers show the
 * server's latency with empty queues. Each lane has one segment in flight. For a near server the least is
 * enough. For a far one, the bytes in flight are twice the rate times the latency.
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
    // A limit that the caller chose needs no measurement.
    if (window.inFlight !== undefined) this.#lanes = this.#least;
  }

  /** How many lanes should run. Never falls. */
  get lanes(): number {
    return this.#lanes;
  }

  /** How many connections there should be, if the server allows several. Never falls. */
  get connections(): number {
    const { connections, mostConnections = MOST_CONNECTIONS } = this.#window;
    const needed = Math.ceil((this.#lanes * this.#segmentBytes) / BYTES_OF_A_CONNECTION);
    const most = Math.min(MOST_CONNECTIONS, mostConnections);
    return connections ?? Math.min(most, Math.max(this.#fewestConnections, needed));
  }

  /**
   * Takes the bytes that were read for a finished segment, and its times in milliseconds of
   * `performance.now()`. `firstByte` is undefined if nothing was read.
   */
  measured(segment: {
    readonly bytes: number;
    readonly asked: number;
    readonly firstByte: number | undefined;
    readonly done: number;
  }): void {
    const { bytes, asked, firstByte, done } = segment;
    // The quickest answer is the closest to the real latency: the others waited in queues.
    if (firstByte !== undefined) this.#latency = Math.min(this.#latency, firstByte - asked);
    if (this.#scouts < SCOUTS) {
      // A segment of zero runs takes no time and shows no latency.
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
    const inFlight = (this.#bytes / span) * this.#latency;
    const wanted = Math.ceil((HEADROOM * inFlight) / this.#segmentBytes);
    this.#lanes = Math.min(this.#most, Math.max(this.#lanes, wanted));
    this.#since = done;
    this.#bytes = 0;
  }

  get #isFar(): boolean {
    return this.#scouts === SCOUTS && this.#latency > FAR_MS;
  }
}

/** How many segments fit into so many bytes in flight; at least 1. */
function lanesOf(inFlight: number, segmentBytes: number): number {
  return Math.max(1, Math.floor(inFlight / segmentBytes));
}

/** Smaller requests were measured to cost more in every respect (docs/performance-history.md). */
const REQUEST_SIZE = 512 * 1024;

/**
 * With glibc's malloc, a server gets new memory from the kernel for each request of 1 MiB, at three times the
 * CPU time, until it has freed a larger block. From then on it keeps its memory, and large requests cost it
 * less than small ones.
 */
const LARGER_REQUEST_SIZE = 1024 * 1024;

/** Size of the one request after which such a server keeps its memory. */
const FIRST_REQUEST_SIZE = 8 * 1024 * 1024;

/**
 * Most bytes of one request: what the caller chose, otherwise the larger of 512 KiB and the server's
 * preferred block; at least a cluster.
 */
export function requestBytesOf(window: Window, clusterSize: number, preferredBlock = 1): number {
  const wanted = window.requestSize ?? Math.max(REQUEST_SIZE, preferredBlock);
  return Math.max(wanted, clusterSize);
}

interface RequestSizeOptions {
  readonly window: Window;
  readonly clusterSize: number;
  readonly preferredBlock?: number | undefined;
  /** Most bytes that the server returns for one request; undefined if larger requests gain nothing. */
  readonly maximum?: number | undefined;
  readonly readThrough: number;
}

/**
 * How large the requests to an export are, in bytes. One large request reads the first data run that is long
 * enough. When it is answered, requests grow to {@link most}. They never grow if the caller chose their size
 * or the bytes in flight.
 */
export class RequestSizes implements RequestBounds {
  readonly readThrough: number;
  /** The size that requests may grow to. */
  readonly most: number;
  /** Size of the one large request, for which the plan makes a segment; undefined if there is none. */
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

  /** Most bytes of one request at this moment. */
  get mostRead(): number {
    return this.#mostRead;
  }

  /** Called when the one large request has been answered. */
  enlarge(): void {
    this.#mostRead = this.most;
  }
}
