import type { NbdClient } from "../../nbd/index.js";
import type { Extent } from "../base/extent.js";
import { classify, cleanZeroesFrom } from "./extent-algebra.js";

export const ALLOCATION_CONTEXT = "base:allocation";

/** The meta context of QEMU that serves the dirty bitmap `name`. */
export function dirtyContext(name: string): string {
  return `qemu:dirty-bitmap:${name}`;
}

/** The new part of a grown disk is reported in these units, so that no cluster becomes partly clean. */
const GROWN_UNIT = 64 * 1024;

/**
 * Yields what the export's negotiated contexts report, as gapless extents from byte 0 to its end. Asks the
 * server lazily and yields in batches. Without `bitmap` (a full copy) nothing is clean. Without contexts the
 * whole export is data.
 *
 * `parentSize`, in bytes, is for an increment on a disk that may have been smaller. QEMU's bitmaps report the
 * part by which a disk has grown as clean, but it need not read as zeroes: an image that shrank in the middle
 * of a cluster shows the old bytes when it grows again. So this part counts as dirty, except for zeroes. The
 * server must allow reading clean bytes.
 *
 * @throws {NbdError} block status failed, or left a part of the export out
 */
export async function* exportExtents(
  client: NbdClient,
  options: {
    readonly bitmap?: string | undefined;
    readonly parentSize?: number | undefined;
    readonly signal?: AbortSignal | undefined;
  },
): AsyncGenerator<readonly Extent[]> {
  const { size, contexts } = client.export;
  if (size === 0) return;
  if (contexts.length === 0) {
    yield [{ offset: 0, length: size, state: "data" }];
    return;
  }
  const dirtyName = options.bitmap === undefined ? undefined : dirtyContext(options.bitmap);
  const { parentSize = size } = options;
  const hasGrown = dirtyName !== undefined && parentSize < size;
  const dirtyFrom = hasGrown ? Math.floor(parentSize / GROWN_UNIT) * GROWN_UNIT : undefined;
  for await (const { offset, length, runs } of client.blockStatus(
    options.signal ? { signal: options.signal } : {},
  )) {
    const dirty = dirtyName === undefined ? undefined : runs.get(dirtyName);
    if (dirtyName !== undefined && dirty === undefined) throw new Error(`${dirtyName} was not negotiated`);
    const extents = classify({ offset, length, dirty, allocation: runs.get(ALLOCATION_CONTEXT), dirtyFrom });
    yield hasGrown ? cleanZeroesFrom(parentSize, extents, GROWN_UNIT) : extents;
  }
}
