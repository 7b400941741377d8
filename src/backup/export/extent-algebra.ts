import { ALLOCATION, DIRTY, type StatusRuns } from "../../nbd/index.js";
import type { Extent, ExtentState } from "../base/extent.js";

/** The server's block status for one range: each context's runs cover exactly `offset .. offset + length`. */
interface RangeStatus {
  readonly offset: number;
  readonly length: number;
  /** The runs of `qemu:dirty-bitmap:NAME`; left out for a full copy. */
  readonly dirty?: StatusRuns | undefined;
  /** The runs of `base:allocation`; left out if the server has none. */
  readonly allocation?: StatusRuns | undefined;
  /** Everything from this byte on is dirty, whatever the bitmap says. */
  readonly dirtyFrom?: number | undefined;
}

/** The status of a context that the server doesn't have. */
const ALL_DIRTY: StatusRuns = {
  ends: Float64Array.of(Number.POSITIVE_INFINITY),
  flags: Float64Array.of(DIRTY),
};
const ALL_DATA: StatusRuns = { ends: Float64Array.of(Number.POSITIVE_INFINITY), flags: Float64Array.of(0) };

/**
 * Combines the dirty bitmap with the allocation into the state of each byte for the backup.
 *
 *     dirty        |   1    |   0    |        1        |
 *     allocation   | data   | zero |  data  | zero     |
 *     result       | data   | clean  | data | zero     |
 *
 * Only ZERO is trusted: a HOLE without it may hold anything, so it is read. What no allocation context
 * describes is read as well. Neighbours in the same state become one extent.
 *
 * @throws {RangeError} runs end before the range does
 */
export function classify(status: RangeStatus): Extent[] {
  const { offset, length, dirty = ALL_DIRTY, allocation = ALL_DATA } = status;
  const { dirtyFrom = Number.POSITIVE_INFINITY } = status;
  const end = offset + length;
  const extents: Extent[] = [];
  let last: { -readonly [K in keyof Extent]: Extent[K] } | undefined;
  let inDirty = 0;
  let inAllocation = 0;
  for (let at = offset; at < end; ) {
    while (endOf(dirty, inDirty, at) <= at) inDirty += 1;
    while (endOf(allocation, inAllocation, at) <= at) inAllocation += 1;
    const isPast = at >= dirtyFrom;
    const isDirty = isPast || ((dirty.flags[inDirty] ?? 0) & DIRTY) !== 0;
    const isZero = ((allocation.flags[inAllocation] ?? 0) & ALLOCATION.ZERO) !== 0;
    const state: ExtentState = !isDirty ? "clean" : isZero ? "zero" : "data";
    let stop = Math.min(endOf(dirty, inDirty, at), endOf(allocation, inAllocation, at), end);
    if (!isPast) stop = Math.min(stop, dirtyFrom);
    if (last?.state === state) last.length += stop - at;
    else {
      last = { offset: at, length: stop - at, state };
      extents.push(last);
    }
    at = stop;
  }
  return extents;
}

function endOf({ ends }: StatusRuns, index: number, at: number): number {
  const end = ends[index];
  if (end === undefined) throw new RangeError(`the status ends before byte ${at}`);
  return end;
}

/**
 * Marks whole units of zeroes from byte `from` on as clean, because nothing lies below them that they would
 * hide. The zeroes before and behind those units stay as they are.
 *
 *     units     |       |       |       |       |
 *     extent     zzzzzzzzzzzzzzzzzzzz
 *     result     zzzzzzz|    clean      |zz
 */
export function cleanZeroesFrom(from: number, extents: readonly Extent[], unit: number): Extent[] {
  return extents.flatMap((extent) => {
    const end = extent.offset + extent.length;
    const first = Math.ceil(Math.max(extent.offset, from) / unit) * unit;
    const last = Math.floor(end / unit) * unit;
    if (extent.state !== "zero" || first >= last) return [extent];
    const pieces: Extent[] = [
      { ...extent, length: first - extent.offset },
      { offset: first, length: last - first, state: "clean" },
      { ...extent, offset: last, length: end - last },
    ];
    return pieces.filter(({ length }) => length > 0);
  });
}
