/** How much is under way at once, in bytes. What is left out is chosen, and adapted to the server. */
export interface Window {
  /** The most that is asked for at a time, though never less than a cluster. */
  readonly requestSize?: number | undefined;
  /** Of what all requests together are to store; clean bytes that are read along come on top. */
  readonly inFlight?: number | undefined;
  /** Not bytes but a number: where the server allows several. */
  readonly connections?: number | undefined;
}

/**
 * Measured: smaller requests cost more of everything, and with larger ones a server that uses glibc's malloc gets new
 * memory from the kernel for each (docs/performance.md).
 */
const REQUEST_SIZE = 512 * 1024;
/** A second connection lets the server fill one while the other is being emptied. */
export const CONNECTIONS = 2;
/** Where answers take longer than that, what counts is how many requests the server works on at a time. */
const FAR_MS = 2;
const FAR_CONNECTIONS = 4;
/** Enough for a unix socket, where less starves and more costs cache. */
const LEAST_IN_FLIGHT = 4 * 1024 * 1024;
/** For far servers. It costs them memory, not us: bytes are stored as they come. */
const MOST_IN_FLIGHT = 64 * 1024 * 1024;

/** How much a segment holds: whole clusters, and whole blocks as the server prefers them. */
export function segmentBytesOf(window: Window, clusterSize: number, preferredBlock = 1): number {
  const wanted = window.requestSize ?? Math.max(REQUEST_SIZE, preferredBlock);
  return Math.max(wanted, clusterSize);
}

/** How often the rate is looked at. */
const SPAN_MS = 50;
/** Under way is what the line and the server hold on the way, twice: so one half is on its way while the other is worked on. */
const HEADROOM = 2;

/**
 * How many lanes there should be: as many as keep the server and the line busy, and no more, since what waits in queues
 * only costs memory and cache. The bytes that are on the way at a time are the rate times the latency; the latency is
 * taken from the segment whose first byte came soonest after it was asked for, before queues formed.
 */
export class Pace {
  readonly #most: number;
  readonly #segmentBytes: number;
  #lanes: number;
  readonly #mostConnections: number;
  #connections: number;
  #latency = Number.POSITIVE_INFINITY;
  #since: number | undefined;
  #bytes = 0;

  constructor(window: Window, segmentBytes: number) {
    this.#segmentBytes = segmentBytes;
    this.#lanes = lanesOf(window.inFlight ?? LEAST_IN_FLIGHT, segmentBytes);
    this.#connections = window.connections ?? CONNECTIONS;
    this.#mostConnections = window.connections ?? FAR_CONNECTIONS;
    this.#most = Math.max(this.#lanes, lanesOf(window.inFlight ?? MOST_IN_FLIGHT, segmentBytes));
  }

  /** Never falls. */
  get lanes(): number {
    return this.#lanes;
  }

  /** How many connections there should be, where the server allows several. Never falls. */
  get connections(): number {
    return this.#connections;
  }

  /** A segment is done. Times in milliseconds, as `performance.now()` has them. */
  note(segment: {
    readonly bytes: number;
    readonly asked: number;
    readonly firstByte: number | undefined;
    readonly done: number;
  }): void {
    const { bytes, asked, firstByte = Number.POSITIVE_INFINITY, done } = segment;
    this.#latency = Math.min(this.#latency, firstByte - asked);
    this.#bytes += bytes;
    this.#since ??= asked;
    const span = done - this.#since;
    if (span < SPAN_MS || !Number.isFinite(this.#latency)) return;
    if (this.#latency > FAR_MS) this.#connections = this.#mostConnections;
    const onTheWay = (this.#bytes / span) * this.#latency;
    const wanted = Math.ceil((HEADROOM * onTheWay) / this.#segmentBytes);
    this.#lanes = Math.min(this.#most, Math.max(this.#lanes, wanted));
    this.#since = done;
    this.#bytes = 0;
  }
}

/** How many lanes a window has room for. */
function lanesOf(inFlight: number, segmentBytes: number): number {
  return Math.max(1, Math.floor(inFlight / segmentBytes));
}
