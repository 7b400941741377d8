/**
 * Hands values on in the order of their index, whatever the order in which they come.
 * What waits is bounded by the number of lanes: each holds back at most what it finished early.
 */
export class InOrder<T> {
  readonly #deliver: (value: T) => void;
  readonly #early = new Map<number, T>();
  #next = 0;

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
  }
}
