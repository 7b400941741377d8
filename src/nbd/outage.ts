/** The time from the loss of a connection to the next answer of the server. */

import { ConnectionError, type NbdError } from "./errors.js";

export class Outage {
  /** The loss that it began with. */
  readonly loss: NbdError;
  /** Attempts to connect that failed, and connections that were lost without an answer. */
  failures = 0;
  /** Whether an event has told that requests wait. */
  isTold = false;
  readonly #withinMs: number | undefined;
  #since: number | undefined;

  /** @param withinMs how long it may last; undefined: any time */
  constructor(loss: NbdError, withinMs: number | undefined) {
    this.loss = loss;
    this.#withinMs = withinMs;
  }

  /** To be called when a request needs a connection: time in which none does is not counted. */
  needed(): void {
    this.#since ??= performance.now();
  }

  /** Milliseconds since a request first needed a connection. */
  get lastedMs(): number {
    return this.#since === undefined ? 0 : performance.now() - this.#since;
  }

  /** Milliseconds that are left of its time; at least 1. */
  get leftMs(): number {
    return Math.max(1, (this.#withinMs ?? Number.POSITIVE_INFINITY) - this.lastedMs);
  }

  get isOver(): boolean {
    return this.#withinMs !== undefined && this.lastedMs >= this.#withinMs;
  }

  /**
   * The error for requests that waited in vain.
   * @param last why the last attempt to connect failed
   */
  giveUp(last: unknown): ConnectionError {
    const reason = last instanceof Error ? last.message : String(last);
    const why = this.isOver
      ? `no answer came within ${Math.round((this.#withinMs ?? 0) / 1000)} s after that`
      : "the connection can't be made again";
    const message = `${this.loss.message}, and ${why}: ${reason}`;
    return new ConnectionError(this.loss.code, message, { cause: last });
  }
}
