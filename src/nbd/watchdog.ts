/**
 * Detects a server that has gone silent, one that dribbles, and one that leaves a request unanswered for too
 * long while it answers others. Each ends the connection, because the bytes of a request that was given up
 * alone could still arrive.
 *
 * Time is counted in checks, not read from a clock: if this process was busy or stopped for a minute, bytes
 * that arrived in the meantime are processed before the next check.
 */

import { ConnectionError } from "./errors.js";
import { Pace } from "./patience/pace.js";

/** Checks within the shortest time-out. A time-out may thus be noticed up to 50 % late. */
const CHECKS = 4;

export interface TimeLimits {
  /**
   * Limit on the server's silence while replies are outstanding. Like the other limits, it may be noticed up
   * to 50 % late.
   */
  readonly idleTimeoutMs: number;
  /**
   * Limit on each reply, from sending the request on. Without it, a reply may take any time while bytes keep
   * arriving.
   */
  readonly requestTimeoutMs: number | undefined;
  /** Bytes per second to move while replies are outstanding; 0 is any rate. */
  readonly minRate: number;
  /** How far the server may fall behind that rate. */
  readonly minRateMs: number;
}

/** What the watchdog observes. */
export interface Watched {
  /** The peer's address, for messages. */
  readonly peer: string;
  /** Bytes received so far, and payload that was taken for sending. */
  readonly bytesMoved: number;
  /** Number of unanswered requests. */
  readonly outstanding: number;
  /** The {@link Watchdog.now} at which the oldest of them was sent. */
  readonly oldest: number | undefined;
}

export class Watchdog {
  readonly #limits: TimeLimits;
  readonly #watched: Watched;
  readonly #giveUp: (error: ConnectionError) => void;
  readonly #intervalMs: number;
  readonly #pace: Pace;
  #timer: NodeJS.Timeout | undefined;
  #now = 0;
  #quietSince = 0;
  #bytesMoved = 0;
  /** Bytes of progress since the last check that complete replies stand for. */
  #worth = 0;
  /** When the outstanding requests began, or the last check; undefined if there are none. */
  #askedSince: number | undefined;
  /** Milliseconds since the last check with requests outstanding, without those since `#askedSince`. */
  #askedMs = 0;

  constructor(limits: TimeLimits, watched: Watched, giveUp: (error: ConnectionError) => void) {
    const { idleTimeoutMs, requestTimeoutMs = idleTimeoutMs, minRate, minRateMs } = limits;
    this.#limits = limits;
    this.#watched = watched;
    this.#giveUp = giveUp;
    const shortest = Math.min(idleTimeoutMs, requestTimeoutMs, minRate > 0 ? minRateMs : idleTimeoutMs);
    this.#intervalMs = Math.max(1, shortest / CHECKS);
    // One more interval, so that silence is noticed as silence.
    this.#pace = new Pace(minRate, minRateMs + this.#intervalMs);
  }

  /** Checks so far. */
  get now(): number {
    return this.#now;
  }

  /** To be called when a request was sent. The first one starts the checks. */
  asked(): void {
    this.#askedSince ??= performance.now();
    if (this.#timer !== undefined) return;
    this.#bytesMoved = this.#watched.bytesMoved;
    this.#timer = setInterval(() => this.#check(), this.#intervalMs).unref();
  }

  /** To be called when a reply is complete; `worth` are bytes of progress besides those of the reply. */
  answered(worth: number): void {
    this.#worth += worth;
    if (this.#askedSince === undefined || this.#watched.outstanding > 0) return;
    this.#askedMs += performance.now() - this.#askedSince;
    this.#askedSince = undefined;
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #check(): void {
    this.#now += 1;
    const { bytesMoved, outstanding, oldest, peer } = this.#watched;
    const moved = bytesMoved - this.#bytesMoved;
    this.#bytesMoved = bytesMoved;
    this.#notePace(Math.max(0, moved));
    if (moved > 0 || outstanding === 0) this.#quietSince = this.#now;
    const { idleTimeoutMs, requestTimeoutMs, minRate, minRateMs } = this.#limits;
    if (this.#isOver(this.#quietSince, idleTimeoutMs)) {
      const message = `${peer} sent nothing for ${idleTimeoutMs} ms with ${outstanding} requests outstanding`;
      this.#giveUp(new ConnectionError("NBD_IDLE_TIMEOUT", message));
    } else if (
      requestTimeoutMs !== undefined &&
      oldest !== undefined &&
      this.#isOver(oldest, requestTimeoutMs)
    ) {
      const message = `${peer} left a request without a complete reply for ${requestTimeoutMs} ms`;
      this.#giveUp(new ConnectionError("NBD_REQUEST_TIMEOUT", message));
    } else if (this.#pace.isTooSlow && outstanding > 0) {
      const message = `${peer} is too slow: it fell ${minRateMs} ms behind ${minRate} bytes a second, the least that it has to move while something is asked`;
      this.#giveUp(new ConnectionError("NBD_TOO_SLOW", message));
    }
  }

  /** No check counts for more time than lies between two, however long this process was stopped. */
  #notePace(moved: number): void {
    let askedMs = this.#askedMs;
    if (this.#askedSince !== undefined) {
      const now = performance.now();
      askedMs += now - this.#askedSince;
      this.#askedSince = now;
    }
    this.#pace.note(Math.min(askedMs, this.#intervalMs), moved + this.#worth);
    this.#askedMs = 0;
    this.#worth = 0;
  }

  /** The first check may come right after `since`, so it doesn't count. */
  #isOver(since: number, timeoutMs: number): boolean {
    return (this.#now - since - 1) * this.#intervalMs >= timeoutMs;
  }
}
