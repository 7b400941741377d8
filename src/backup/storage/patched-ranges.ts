import type { StoredObject } from "../s3/asker.js";
import type { AssembledRange } from "../s3/assembly.js";
import type { Bucket } from "../s3/bucket.js";
import type { StoredPatch } from "./stored-writing.js";

/**
 * An object is divided into cells of this size. Those that a patch touches are written, the others are copied
 * by the store: both are long enough to be parts.
 */
const CELL_BYTES = 8 * 1024 * 1024;
/** With larger cells there are fewer. Each may be several parts, of which S3 takes 10,000. */
const MOST_RANGES = 5_000;

/**
 * What an object is made of that has other bytes at some places.
 *
 *     patches          ##    #               #
 *     ranges    |copied  |written |copied   |written |copied    |
 */
export function patchedRanges(
  bucket: Bucket,
  original: StoredObject,
  patches: readonly StoredPatch[],
): AssembledRange[] {
  const end = patches.reduce((most, { position, length }) => Math.max(most, position + length), 0);
  // An object that was cut off inside a cluster is filled up with zeroes.
  const filling: StoredPatch = {
    position: original.size,
    length: Math.max(0, end - original.size),
    read: async () => undefined,
  };
  const all = filling.length > 0 ? [filling, ...patches] : patches;
  for (let cellBytes = CELL_BYTES; ; cellBytes *= 2) {
    const cells = cellsOf(all, cellBytes);
    const ranges = rangesOf(bucket, original, { cells, cellBytes });
    if (ranges.length <= MOST_RANGES || cells.size <= 1) return ranges;
  }
}

/** The patches that touch each cell, by its number. */
type Cells = ReadonlyMap<number, readonly StoredPatch[]>;

function cellsOf(patches: readonly StoredPatch[], cellBytes: number): Cells {
  const cells = new Map<number, StoredPatch[]>();
  for (const patch of patches) {
    const last = Math.floor((patch.position + patch.length - 1) / cellBytes);
    for (let cell = Math.floor(patch.position / cellBytes); cell <= last; cell += 1) {
      const those = cells.get(cell);
      if (those) those.push(patch);
      else cells.set(cell, [patch]);
    }
  }
  return cells;
}

function rangesOf(
  bucket: Bucket,
  { key, etag, size }: StoredObject,
  { cells, cellBytes }: { readonly cells: Cells; readonly cellBytes: number },
): AssembledRange[] {
  const ranges: AssembledRange[] = [];
  const end = [...cells.values()]
    .flat()
    .reduce((most, each) => Math.max(most, each.position + each.length), size);
  let at = 0;
  const copyTo = (end: number): void => {
    if (end > at) ranges.push({ key, etag, start: at, length: end - at });
  };
  for (const [cell, patches] of [...cells].sort(([one], [other]) => one - other)) {
    const start = cell * cellBytes;
    const length = Math.min(end - start, cellBytes);
    const read = async (signal: AbortSignal): Promise<Buffer> => {
      const bytes = Buffer.alloc(length);
      const there = bytes.subarray(0, Math.max(0, size - start));
      if (there.length > 0) await bucket.readRange(key, there, start, { signal, etag });
      for (const patch of patches) {
        signal.throwIfAborted();
        await apply(patch, bytes, start);
      }
      return bytes;
    };
    copyTo(start);
    ranges.push({ length, read });
    at = start + length;
  }
  copyTo(size);
  return ranges;
}

/** @param start where in the file `bytes` begin */
async function apply({ position, length, read }: StoredPatch, bytes: Buffer, start: number): Promise<void> {
  const content = await read();
  if (!content) return;
  const from = Math.max(0, start - position);
  const to = Math.min(length, start + bytes.length - position);
  bytes.set(content.subarray(from, to), position + from - start);
}
