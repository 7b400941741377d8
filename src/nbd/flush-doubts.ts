/** What a flush may promise. */

import { ConnectionError } from "./errors.js";
import type { Pool } from "./pool.js";

/** Which writes a flush can speak for: those that were acknowledged since a connection was lost last. */
export class FlushDoubts {
  readonly #pool: Pool;
  /** Writes that settled and weren't on stable storage then. */
  #writes = 0;
  /** How many of them a flush has covered since. */
  #flushed = 0;
  /** How many connections had been lost when the first of the others began. */
  #since = 0;
  /** How many had been lost when the caller was told that writes are in doubt. */
  #told: number | undefined;

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  get writes(): number {
    return this.#writes;
  }

  /** A write has settled that began after so many losses. Once the caller knows, it is up to him what he repeats. */
  written(losses: number, isStable: boolean): void {
    if (this.#told !== undefined && losses >= this.#told) {
      this.#told = undefined;
      this.#flushed = this.#writes;
    }
    if (isStable) return;
    this.#since = this.#flushed === this.#writes ? losses : Math.min(this.#since, losses);
    this.#writes += 1;
  }

  /** @throws {ConnectionError} where a connection was lost since the first `upTo` writes */
  check(upTo: number): void {
    if (upTo <= this.#flushed || this.#since === this.#pool.losses) return;
    this.tell();
    const message =
      "a connection was lost since the writes that a flush is to cover: make them again, then flush";
    throw new ConnectionError("NBD_WRITES_IN_DOUBT", message);
  }

  /** The caller learns that a flush failed, which leaves in doubt what was written before a loss. */
  tell(): void {
    if (this.#flushed < this.#writes && this.#since !== this.#pool.losses) this.#told = this.#pool.losses;
  }

  flushed(upTo: number): void {
    this.#flushed = Math.max(this.#flushed, upTo);
  }
}
