import pLimit from "p-limit";

/**
 * Lets so many requests be under way as there are connections for them. One that waits for its connection
 * behind many others on a slow line would fail as if the store were away.
 */
export class Turns {
  readonly #atOnce: number;
  readonly #limit;

  constructor(atOnce: number) {
    this.#atOnce = atOnce;
    this.#limit = pLimit(atOnce);
  }

  /** @throws the signal's reason, also while it waits for its turn */
  async send<T>(request: (signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<T> {
    signal.throwIfAborted();
    if (this.#limit.activeCount < this.#atOnce) return await this.#limit(request, signal);
    return await new Promise((resolve, reject) => {
      const abort = (): void => reject(signal.reason as Error);
      signal.addEventListener("abort", abort, { once: true });
      const sent = this.#limit(async () => {
        signal.removeEventListener("abort", abort);
        signal.throwIfAborted();
        return await request(signal);
      });
      sent.then(resolve, reject);
    });
  }
}
