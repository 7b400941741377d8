/** Disks of any size that need no memory: their content is computed when it is read. */

import type { ServedExport, StatusExtent } from "../../src/nbd/server/index.js";
import { ALLOCATION, DIRTY } from "../../src/nbd/wire/constants.js";

/** A stretch of equal, nonzero bytes; offset and length in bytes. */
export interface Stretch {
  readonly offset: number;
  readonly length: number;
  readonly fill: number;
}

export interface SparseDisk {
  readonly size: number;
  /** In ascending order; everything else reads as zeroes. */
  readonly data: readonly Stretch[];
  /** What the bitmap `b0` marks, in ascending order. Without it, there is no bitmap. */
  readonly dirty?: readonly Omit<Stretch, "fill">[] | undefined;
  /**
   * A read that touches a clean byte fails, and there is no allocation, as on QEMU's snapshot-access exports.
   */
  readonly refusesClean?: boolean;
  /** Called for every read. */
  readonly onRead?: (offset: number, length: number) => void;
}

export const SPARSE_BITMAP = "b0";

export function sparseExport({ size, data, dirty, refusesClean, onRead }: SparseDisk): ServedExport {
  const contexts = new Map<string, (offset: number, length: number) => Iterable<StatusExtent>>();
  if (dirty) contexts.set(`qemu:dirty-bitmap:${SPARSE_BITMAP}`, flagsOf(dirty, DIRTY, 0));
  if (!refusesClean) contexts.set("base:allocation", flagsOf(data, 0, ALLOCATION.HOLE | ALLOCATION.ZERO));
  return {
    size,
    contexts,
    read: (offset, length) => {
      onRead?.(offset, length);
      if (refusesClean && !(dirty ?? []).some((mark) => covers(mark, offset, length)))
        throw new Error(`bytes at ${offset} are clean`);
      const bytes = new Uint8Array(length);
      for (const stretch of data) {
        const from = Math.max(stretch.offset - offset, 0);
        const to = Math.min(stretch.offset + stretch.length - offset, length);
        if (from < to) bytes.fill(stretch.fill, from, to);
      }
      return bytes;
    },
  };
}

function covers(mark: Omit<Stretch, "fill">, offset: number, length: number): boolean {
  return mark.offset <= offset && offset + length <= mark.offset + mark.length;
}

/** Flags `inside` for the stretches, `outside` for everything else. */
function flagsOf(stretches: readonly Omit<Stretch, "fill">[], inside: number, outside: number) {
  return function* (offset: number, length: number): Generator<StatusExtent> {
    const end = offset + length;
    let at = offset;
    for (const stretch of stretches) {
      const from = Math.max(stretch.offset, at);
      const to = Math.min(stretch.offset + stretch.length, end);
      if (from >= to) continue;
      if (from > at) yield { length: from - at, flags: outside };
      yield { length: to - from, flags: inside };
      at = to;
    }
    if (at < end) yield { length: end - at, flags: outside };
  };
}
