/**
 * Limits the requests of one connection that are processed at a time, in number and in bytes of payload. The
 * connection reads its next request only after this one was admitted. This limits what a client can make the
 * server hold, however fast it sends and however slowly it reads.
 */
export class Window {
  readonly #maxRequests: number;
  readonly #maxBytes: number;
  #requests = 0;
  #bytes = 0;
  #waiting: (() => void) | undefined;

  constructor(maxRequests: number, maxBytes: number) {
    this.#maxRequests = maxRequests;
    this.#maxBytes = maxBytes;
  }

  /** Waits for room; a request larger than the window is admitted alone. At most one caller waits. */
  async enter(bytes: number): Promise<void> {
    while (
      this.#requests >= this.#maxRequests ||
      (this.#requests > 0 && this.#bytes + bytes > this.#maxBytes)
    ) {
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    }
    this.#requests += 1;
    this.#bytes += bytes;
  }

  leave(bytes: number): void {
    this.#requests -= 1;
    this.#bytes -= bytes;
    this.#waiting?.();
    this.#waiting = undefined;
  }

  /** Waits until no request is in flight. */
  async drained(): Promise<void> {
    while (this.#requests > 0) {
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    }
  }
}
