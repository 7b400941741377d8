/** Most finished block-status requests to remember. Late chunks follow closely after the reply. */
const MAX_FINISHED = 64;

/**
 * If one context fails, QEMU ends the reply to a block-status request with the error and then still sends the
 * next context's chunk. Such a late chunk is skipped. Only block status with several contexts is affected, so
 * each such request allows for two late chunks per context.
 */
export class LateChunks {
  readonly #contexts: number;
  /** Cookies of the requests that were answered last. */
  readonly #finished = new Set<number>();
  /** Chunks that may still be skipped. */
  #allowance = 0;

  /** @param contexts how many were negotiated */
  constructor(contexts: number) {
    this.#contexts = contexts;
  }

  /** A block-status request is sent. */
  noteSent(): void {
    if (this.#contexts > 1) this.#allowance += 2 * this.#contexts;
  }

  /** A block-status request was answered. */
  noteFinished(cookie: number): void {
    if (this.#contexts < 2) return;
    this.#finished.add(cookie);
    if (this.#finished.size <= MAX_FINISHED) return;
    for (const oldest of this.#finished) {
      this.#finished.delete(oldest);
      return;
    }
  }

  /** Whether a chunk that no open request has is a late one. */
  skip(cookie: number): boolean {
    if (this.#allowance === 0 || !this.#finished.has(cookie)) return false;
    this.#allowance -= 1;
    return true;
  }
}
