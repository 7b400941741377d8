/**
 * The requests of one connection that are worked on at a time, in number and in bytes of payload. The connection reads
 * its next request only once this one has been let in, so what a client can make the server hold is limited, however fast
 * it asks and however slowly it reads.
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

  /** Waits for room; a request larger than the window comes in alone. At most one caller waits. */
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

  /** Waits until nothing is in flight. */
  async drained(): Promise<void> {
    while (this.#requests > 0) {
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    }
  }
}
