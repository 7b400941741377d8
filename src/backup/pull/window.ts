import { CONNECTIONS } from "../export/open-export.js";

/** How much is under way at once, in bytes. What is left out is chosen, and adapted to the server. */
export interface Window {
  /** The most that is asked for at a time, though never less than a cluster. */
  readonly requestSize?: number | undefined;
  /** Of what all requests together are to store; clean bytes that are read along come on top. */
  readonly inFlight?: number | undefined;
  /** Not bytes but a number: where the server allows several. */
  readonly connections?: number | undefined;
}

/** Where answers take longer than that, what counts is how many requests the server works on at a time. */
const FAR_MS = 4;
const MOST_CONNECTIONS = 4;
/** More connections than one for so much were measured to cost a fifth. */
const BYTES_OF_A_CONNECTION = 8 * 1024 * 1024;
/** What is under way at the least where the server is far. */
const FAR_IN_FLIGHT = 16 * 1024 * 1024;
/** Enough for a unix socket, where less starves and more costs cache. */
const LEAST_IN_FLIGHT = 4 * 1024 * 1024;
/** For far servers. Where bytes are stored as they come it costs them memory, not us. */
const MOST_IN_FLIGHT = 64 * 1024 * 1024;

/** Segments that are asked for one after the other: the first one finds us, and perhaps the server, cold. */
const SCOUTS = 4;
/** How often the rate is looked at. */
const SPAN_MS = 50;
/** Under way is what the line and the server hold on the way, twice: so one half is on its way while the other is worked on. */
const HEADROOM = 2;

/**
 * How many lanes there should be: as many as keep the server and the line busy, and no more, since what waits in queues
 * only costs memory and cache. One lane goes ahead, so that its first answers tell how far the server is, with nothing
 * queued before them. Where it is near, the least is enough; where it is far, what is on the way at a time is the rate times the
 * latency.
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
    // Who says how much shall be under way needs no scout.
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

  /** A segment is done. Times in milliseconds, as `performance.now()` has them. */
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
