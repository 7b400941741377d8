import { ALLOCATION, DIRTY } from "../nbd/index.js";
import type { Extent, ExtentState } from "./extent.js";

/** A stretch of the export with the flags that one meta context gives it. */
export interface Flagged {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
}

/** What the server said of one range: each list covers exactly `offset .. offset + length`. */
export interface RangeStatus {
  readonly offset: number;
  readonly length: number;
  /** Of `qemu:dirty-bitmap:NAME`; left out for a full copy. */
  readonly dirty?: readonly Flagged[] | undefined;
  /** Of `base:allocation`; left out where the server has none. */
  readonly allocation?: readonly Flagged[] | undefined;
}

/**
 * Lays the dirty bitmap over the allocation and says what each byte is to the backup.
 *
 *     dirty        |   1    |   0    |        1        |
 *     allocation   | data   | zero |  data  | zero     |
 *     result       | data   | clean  | data | zero     |
 *
 * Only ZERO is trusted: a HOLE without it may hold anything, so it is read. What no allocation context
 * describes is read as well. Neighbours in the same state come out as one.
 */
export function* classify(status: RangeStatus): Generator<Extent> {
  const end = status.offset + status.length;
  const dirty = new Cursor(status.dirty, DIRTY);
  const allocation = new Cursor(status.allocation, 0);
  let pending: Extent | undefined;
  for (let offset = status.offset; offset < end; ) {
    dirty.moveTo(offset);
    allocation.moveTo(offset);
    const stop = Math.min(dirty.end, allocation.end, end);
    const state = stateOf(dirty.flags, allocation.flags);
    if (pending?.state === state) pending = { ...pending, length: stop - pending.offset };
    else {
      if (pending) yield pending;
      pending = { offset, length: stop - offset, state };
    }
    offset = stop;
  }
  if (pending) yield pending;
}

function stateOf(dirtyFlags: number, allocationFlags: number): ExtentState {
  if ((dirtyFlags & DIRTY) === 0) return "clean";
  return (allocationFlags & ALLOCATION.ZERO) !== 0 ? "zero" : "data";
}

/** The same list, with everything from byte `from` on dirty. */
export function dirtyFrom(from: number, dirty: readonly Flagged[]): Flagged[] {
  return dirty.flatMap(({ offset, length, flags }) => {
    const before = Math.min(length, Math.max(0, from - offset));
    return [
      { offset, length: before, flags },
      { offset: offset + before, length: length - before, flags: flags | DIRTY },
    ].filter((piece) => piece.length > 0);
  });
}

/**
 * Zeroes from byte `from` on need not be said, since nothing lies below: whole units of them become clean, what lies
 * before and behind stays as it is.
 *
 *     units     |       |       |       |       |
 *     extent     zzzzzzzzzzzzzzzzzzzz
 *     result     zzzzzzz|    clean      |zz
 */
export function* cleanZeroesFrom(from: number, extents: Iterable<Extent>, unit: number): Generator<Extent> {
  for (const extent of extents) {
    const end = extent.offset + extent.length;
    const first = Math.ceil(Math.max(extent.offset, from) / unit) * unit;
    const last = Math.floor(end / unit) * unit;
    if (extent.state !== "zero" || first >= last) {
      yield extent;
      continue;
    }
    if (extent.offset < first) yield { ...extent, length: first - extent.offset };
    yield { offset: first, length: last - first, state: "clean" };
    if (last < end) yield { ...extent, offset: last, length: end - last };
  }
}

/** Walks one list of flags; where there is no list, one endless extent with the flags given. */
class Cursor {
  readonly #list: readonly Flagged[];
  #index = 0;
  flags: number;
  end = Number.POSITIVE_INFINITY;

  constructor(list: readonly Flagged[] | undefined, flags: number) {
    this.#list = list ?? [];
    this.flags = flags;
    const first = this.#list[0];
    if (first) this.#take(first);
  }

  moveTo(offset: number): void {
    while (offset >= this.end) {
      const next = this.#list[++this.#index];
      if (!next) throw new RangeError(`the status ends at byte ${this.end}, before byte ${offset}`);
      this.#take(next);
    }
  }

  #take(extent: Flagged): void {
    this.flags = extent.flags;
    this.end = extent.offset + extent.length;
  }
}
