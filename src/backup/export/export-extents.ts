import type { NbdClient } from "../../nbd/index.js";
import type { Extent } from "../base/extent.js";
import { classify, cleanZeroesFrom } from "./extent-algebra.js";

export const ALLOCATION_CONTEXT = "base:allocation";

/** The meta context of QEMU that serves the dirty bitmap `name`. */
export function dirtyContext(name: string): string {
  return `qemu:dirty-bitmap:${name}`;
}

/** What is new on a disk that has grown is told in such units, so that it never makes clusters that are partly clean. */
const GROWN_UNIT = 64 * 1024;

/**
 * Everything that the export's negotiated contexts say, as gapless extents from byte 0 to its end, asked for lazily and
 * handed on in batches.
 * Without `bitmap` (a full copy) nothing is clean. Without contexts the whole export is data.
 *
 * `parentSize` is for an increment on a disk that may have been smaller, in bytes. QEMU's bitmaps call clean what a disk
 * has grown by, but it need not read as zeroes: an image that shrank in the middle of a cluster shows the old bytes when it
 * grows again. So it counts as dirty, but for zeroes. The server must let clean bytes be read.
 *
 * @throws {NbdError} block status failed, or left something unsaid
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
