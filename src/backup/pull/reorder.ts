/** When so many values wait for an earlier one, `capacity` makes its callers wait. */
const MAX_EARLY = 1024;

/** Takes values in any order and delivers them in the order of their index, from 0. */
export class ReorderBuffer<T> {
  readonly #deliver: (value: T) => void;
  readonly #early = new Map<number, T>();
  #waiting: (() => void)[] = [];
  /** Index of the value to be delivered next. */
  #next = 0;
  #open = false;

  constructor(deliver: (value: T) => void) {
    this.#deliver = deliver;
  }

  put(index: number, value: T): void {
    this.#early.set(index, value);
    for (; this.#early.has(this.#next); this.#next += 1) {
      const ready = this.#early.get(this.#next) as T;
      this.#early.delete(this.#next);
      this.#deliver(ready);
    }
    if (this.#early.size < MAX_EARLY) this.#wake();
  }

  /** Waits while too many values wait for a late one, so that they don't pile up. */
  async capacity(): Promise<void> {
    while (this.#early.size >= MAX_EARLY && !this.#open) {
      await new Promise<void>((resolve) => {
        this.#waiting.push(resolve);
      });
    }
  }

  /** Ends all waiting in `capacity`, now and later, because the missing value will never come. */
  giveUp(): void {
    this.#open = true;
    this.#wake();
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}
