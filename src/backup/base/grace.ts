/** How long all that has to be done although somebody has given a signal may take, from the signal on. */
export const GRACE_MS = 10_000;

/**
 * A signal that fires some time after another one has, for the same reason: what has to be done although
 * somebody has given that gets some time, and no more.
 */
export class Grace implements Disposable {
  readonly #signal: AbortSignal | undefined;
  readonly #late = new AbortController();
  readonly #graceMs: number;
  #timer: NodeJS.Timeout | undefined;

  /** @param graceMs in milliseconds, from now on if the signal has fired before */
  constructor(signal: AbortSignal | undefined, graceMs: number) {
    this.#signal = signal;
    this.#graceMs = graceMs;
    if (signal?.aborted) this.#begin();
    else signal?.addEventListener("abort", this.#begin, { once: true });
  }

  readonly #begin = (): void => {
    this.#timer = setTimeout(() => this.#late.abort(this.#signal?.reason), this.#graceMs);
  };

  get late(): AbortSignal {
    return this.#late.signal;
  }

  /** It never fires then. */
  [Symbol.dispose](): void {
    this.#signal?.removeEventListener("abort", this.#begin);
    clearTimeout(this.#timer);
  }
}
