import { ALLOCATION_CONTEXT } from "../src/backup/export/export-extents.js";
import { ALLOCATION, DIRTY } from "../src/nbd/index.js";

const DIRTY_PREFIX = "qemu:dirty-bitmap:";
const DEPTH_CONTEXT = "qemu:allocation-depth";
const OF_ALLOCATION = ["data", "hole", "zero", "hole,zero"];
const OF_BITMAP = ["clean", "dirty"];
const OF_DEPTH = ["absent", "local"];

/** The word by which nbdinfo describes an extent; undefined where it has none: unknown flags or contexts. */
export function describeFlags(context: string, flags: number): string | undefined {
  if (context === ALLOCATION_CONTEXT) return OF_ALLOCATION[flags];
  if (context.startsWith(DIRTY_PREFIX)) return OF_BITMAP[flags];
  if (context === DEPTH_CONTEXT) return OF_DEPTH[flags] ?? `backing depth ${flags}`;
  return undefined;
}

/**
 * Whether the picture shows an extent: data, dirty, or allocated in the topmost image. Unknown bits don't
 * count.
 */
export function isShown(context: string, flags: number): boolean {
  if (context === ALLOCATION_CONTEXT) return (flags & (ALLOCATION.HOLE | ALLOCATION.ZERO)) === 0;
  if (context.startsWith(DIRTY_PREFIX)) return (flags & DIRTY) !== 0;
  return context === DEPTH_CONTEXT && flags === 1;
}
