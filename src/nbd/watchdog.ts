/**
 * Detects a server that has gone silent, or one that leaves a request unanswered for too long while it
 * answers others. Either ends the connection, because the bytes of a request that was given up alone could
 * still arrive.
 *
 * Time is counted in checks, not read from a clock: if this process was busy for a minute, bytes that arrived
 * in the meantime are processed before the next check.
 */

import { ConnectionError } from "./errors.js";

/** Checks within the shorter time-out. A time-out may thus be noticed up to 50 % late. */
const CHECKS = 4;

export interface TimeLimits {
  /**
   * Limit on the server's silence while replies are outstanding. Like the other limit, it may be noticed up
   * to 50 % late.
   */
  readonly idleTimeoutMs: number;
  /**
   * Limit on each reply, from sending the request on. Without it, a reply may take any time while bytes keep
   * arriving.
   */
  readonly requestTimeoutMs: number | undefined;
}

/** What the watchdog observes. */
export interface Watched {
  /** The peer's address, for messages. */
  readonly peer: string;
  /** Grows whenever bytes move. */
  readonly activity: number;
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
  #timer: NodeJS.Timeout | undefined;
  #now = 0;
  #quietSince = 0;
  #activity = 0;

  constructor(limits: TimeLimits, watched: Watched, giveUp: (error: ConnectionError) => void) {
    const { idleTimeoutMs, requestTimeoutMs = idleTimeoutMs } = limits;
    this.#limits = limits;
    this.#watched = watched;
    this.#giveUp = giveUp;
    this.#intervalMs = Math.max(1, Math.min(idleTimeoutMs, requestTimeoutMs) / CHECKS);
  }

  /** Checks so far. */
  get now(): number {
    return this.#now;
  }

  /** Starts checking; has no effect if it is already running. */
  start(): void {
    if (this.#timer !== undefined) return;
    this.#activity = this.#watched.activity;
    this.#timer = setInterval(() => this.#check(), this.#intervalMs).unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #check(): void {
    this.#now += 1;
    const { activity, outstanding, oldest } = this.#watched;
    const isQuiet = activity === this.#activity && outstanding > 0;
    this.#activity = activity;
    if (!isQuiet) this.#quietSince = this.#now;
    const { idleTimeoutMs, requestTimeoutMs } = this.#limits;
    const { peer } = this.#watched;
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
    }
  }

  /** The first check may come right after `since`, so it doesn't count. */
  #isOver(since: number, timeoutMs: number): boolean {
    return (this.#now - since - 1) * this.#intervalMs >= timeoutMs;
  }
}
