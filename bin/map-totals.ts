import { describeFlags } from "./map-types.js";

/** All extents of a context with the same flags. */
export interface Total {
  /** Undefined: extents of more different flags than are counted one by one. */
  readonly type: number | undefined;
  readonly description: string | undefined;
  bytes: number;
  extents: number;
}

/**
 * Most flag values that are counted one by one: those of an unknown context, or depths, may differ in every
 * extent.
 */
const MOST_TYPES = 1000;

/** Adds up the extents of a map by their flags, in bounded memory. */
export class MapTotals {
  readonly #context: string;
  readonly #byFlags = new Map<number, Total>();
  #others: Total | undefined;

  constructor(context: string) {
    this.#context = context;
  }

  /** Takes the next extent; its neighbour has other flags. */
  add(length: number, flags: number): void {
    const total = this.#byFlags.get(flags) ?? this.#newTotal(flags);
    total.bytes += length;
    total.extents += 1;
  }

  /** In the order in which the types were seen. */
  get all(): readonly Total[] {
    return [...this.#byFlags.values(), ...(this.#others ? [this.#others] : [])];
  }

  #newTotal(flags: number): Total {
    if (this.#byFlags.size >= MOST_TYPES) {
      this.#others ??= { type: undefined, description: "other types", bytes: 0, extents: 0 };
      return this.#others;
    }
    const total = { type: flags, description: describeFlags(this.#context, flags), bytes: 0, extents: 0 };
    this.#byFlags.set(flags, total);
    return total;
  }
}
