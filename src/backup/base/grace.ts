/** How long all that has to be done although somebody has given a signal may take, from the signal on. */
export const GRACE_MS = 10_000;

const LEFT =
  "what could not be ended in time is left to the next run, and a point may be there (see nbdpull points)";

/** The reason of a signal that says to its user what was left. */
interface TellingReason {
  readonly tellLeft: (what: string) => void;
}

/** Has the reason of a signal that has fired say what was left, if it says such things. */
export function tellLeft(signal: AbortSignal | undefined, what: string): void {
  const reason = signal?.reason as Partial<TellingReason> | undefined;
  reason?.tellLeft?.(what);
}

/**
 * A signal that fires some time after another one has, for the same reason: what has to be done although
 * somebody has given that gets some time, and no more. The reason is told then that something may be left.
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
    this.#timer = setTimeout(() => {
      tellLeft(this.#signal, LEFT);
      this.#late.abort(this.#signal?.reason);
    }, this.#graceMs);
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
