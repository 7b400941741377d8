/**
 * Notices a server that has fallen silent, or that answers others but leaves one request waiting for too long. Either
 * ends the connection: a request that is given up while its bytes may still come would leave it in doubt.
 *
 * Time is counted in checks, not read from a clock: when this process was busy for a minute, what the server sent
 * meanwhile is taken in before the next check.
 */

import { ConnectionError } from "./errors.js";

/** How often is looked within the shorter time-out, which may so take up to half as long again to be noticed. */
const CHECKS = 4;

export interface TimeLimits {
  /** For the silence of a server that owes replies; like the other, it may take up to half as long again. */
  readonly idleTimeoutMs: number;
  /** For each reply from its request's departure on; without it, a slow reply has as long as bytes keep coming. */
  readonly requestTimeoutMs: number | undefined;
}

/** What is watched. */
export interface Watched {
  /** Where it leads to, for messages. */
  readonly peer: string;
  /** Grows whenever bytes move. */
  readonly activity: number;
  /** Requests sent and unanswered. */
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

  /** Begins to look; without effect when it has. */
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

  /** The first check may come right after `since`, so that it doesn't count. */
  #isOver(since: number, timeoutMs: number): boolean {
    return (this.#now - since - 1) * this.#intervalMs >= timeoutMs;
  }
}
