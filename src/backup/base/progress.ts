/** Time between two reports. More reports would cost time, and a user could not see them. */
const EVERY_MS = 100;

/** Reports progress to a listener: the first state, then one state every 100 ms at most, and the last one. */
export class Progress<T> {
  readonly #report: ((state: T) => void) | undefined;
  #lastReport = 0;
  #unreported: T | undefined;

  constructor(report: ((state: T) => void) | undefined) {
    this.#report = report;
  }

  /** Takes a new state; reports it if the last report is long enough ago. */
  note(state: T): void {
    this.#unreported = state;
    const now = performance.now();
    if (now - this.#lastReport < EVERY_MS) return;
    this.#lastReport = now;
    this.finish();
  }

  /** Reports the latest state, unless it has been reported. To be called at the end. */
  finish(): void {
    if (this.#unreported !== undefined) this.#report?.(this.#unreported);
    this.#unreported = undefined;
  }
}
