/** Tracks which writes a flush can guarantee to be on stable storage. */

import { ConnectionError } from "./errors.js";
import type { Pool } from "./pool.js";

/**
 * A flush covers only writes that began after the last loss of a connection. A write before that may have
 * been acknowledged by a server process that died with it, and the flush reaches another process.
 */
export class FlushDoubts {
  readonly #pool: Pool;
  /** Writes that settled without being on stable storage. */
  #writes = 0;
  /** Number of them that a flush has covered since. */
  #flushed = 0;
  /** Number of connections that had been lost when the first write not yet covered began. */
  #since = 0;
  /** Number of losses when the caller was told that writes are in doubt. */
  #told: number | undefined;

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  get writes(): number {
    return this.#writes;
  }

  /**
   * Notes a settled write that began when `losses` connections had been lost. If it began after the caller
   * was told that writes are in doubt, those count as covered: what to repeat is the caller's decision.
   * @param isStable whether it is on stable storage already
   */
  written(losses: number, isStable: boolean): void {
    if (this.#told !== undefined && losses >= this.#told) {
      this.#told = undefined;
      this.#flushed = this.#writes;
    }
    if (isStable) return;
    this.#since = this.#flushed === this.#writes ? losses : Math.min(this.#since, losses);
    this.#writes += 1;
  }

  /**
   * @throws {ConnectionError} if a connection was lost since the first uncovered one of the first `upTo`
   * writes
   */
  check(upTo: number): void {
    if (upTo <= this.#flushed || this.#since === this.#pool.losses) return;
    this.tell();
    const message =
      "a connection was lost after writes that this flush should cover: repeat the writes, then flush";
    throw new ConnectionError("NBD_WRITES_IN_DOUBT", message);
  }

  /** Notes that the caller learns of a failed flush, if a loss has left writes in doubt. */
  tell(): void {
    if (this.#flushed < this.#writes && this.#since !== this.#pool.losses) this.#told = this.#pool.losses;
  }

  flushed(upTo: number): void {
    this.#flushed = Math.max(this.#flushed, upTo);
  }
}
