/** Values that may wait for an earlier one before no more are taken on. */
const MAX_EARLY = 1024;

/** Hands values on in the order of their index, whatever the order in which they come. */
export class ReorderBuffer<T> {
  readonly #deliver: (value: T) => void;
  readonly #early = new Map<number, T>();
  #waiting: (() => void)[] = [];
  #next = 0;
  #open = false;

  constructor(deliver: (value: T) => void) {
    this.#deliver = deliver;
  }

  put(index: number, value: T): void {
    this.#early.set(index, value);
    for (let ready = this.#early.get(this.#next); ready !== undefined; ready = this.#early.get(this.#next)) {
      this.#early.delete(this.#next);
      this.#next += 1;
      this.#deliver(ready);
    }
    if (this.#early.size < MAX_EARLY) this.#wake();
  }

  /** Resolves when there is room for more work: one value that is late must not let all others pile up. */
  async capacity(): Promise<void> {
    while (this.#early.size >= MAX_EARLY && !this.#open) {
      await new Promise<void>((resolve) => {
        this.#waiting.push(resolve);
      });
    }
  }

  /** The missing value will never come: nobody has to wait any more. */
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
