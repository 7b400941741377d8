import type { SeededRandom } from "./seeded-random.js";

/**
 * Keeps a random sample of a stream of elements whose number is not known before: each element is in it with
 * the same probability. Elements that are passed over cost nothing (Li's algorithm L, 1994), so a stream may
 * have billions.
 */
export class Reservoir<T> {
  readonly #most: number;
  readonly #random: SeededRandom;
  readonly #kept: T[] = [];
  /** Number of elements that were offered. */
  #offered = 0;
  /** Index of the next element that is kept in the place of another one. */
  #next = Number.POSITIVE_INFINITY;
  #weight = 1;

  /** @param most of how many elements the sample is; fewer if fewer are offered */
  constructor(most: number, random: SeededRandom) {
    this.#most = most;
    this.#random = random;
  }

  /** The sample. Its order means nothing. */
  get kept(): readonly T[] {
    return this.#kept;
  }

  /**
   * Offers the next elements.
   * @param at makes the element with the index `i` of these `count`
   */
  offer(count: number, at: (i: number) => T): void {
    const first = this.#offered;
    this.#offered += count;
    let i = 0;
    for (; i < count && this.#kept.length < this.#most; i += 1) {
      this.#kept.push(at(i));
      if (this.#kept.length === this.#most) {
        this.#next = first + i;
        this.#advance();
      }
    }
    for (; this.#next < this.#offered; this.#advance()) {
      this.#kept[this.#random.below(this.#most)] = at(this.#next - first);
    }
  }

  #advance(): void {
    this.#weight *= Math.exp(Math.log(this.#random.fraction()) / this.#most);
    this.#next += Math.floor(Math.log(this.#random.fraction()) / Math.log1p(-this.#weight)) + 1;
  }
}
