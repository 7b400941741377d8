import { BackupError } from "../base/errors.js";
import { allOrNone, together } from "../base/in-parallel.js";
import type { AskOptions, StoredObject } from "../s3/asker.js";
import { LEAST_PART_BYTES, ObjectAssembly } from "../s3/assembly.js";
import type { Bucket } from "../s3/bucket.js";

/** Both ends of so many bytes are compared. No part that is copied is shorter, if there are several. */
const COMPARED_BYTES = 32 * 1024 * 1024;
/** Of an end. */
const END_BYTES = 64 * 1024;
const COMPARED_AT_ONCE = 8;

/**
 * Has the store copy an object, and compares both ends of each 32 MiB of the copy with the original: a store
 * could copy a part of it from another place.
 * @param options.beforeIt called when everything is copied, and before the copy is there
 * @param options.late as for an upload: what has to be done after a signal ends then
 * @throws {DamageError} `E_S3_MISSING`
 * @throws {BackupError} `E_S3_FAILED`: the store has copied something else, which lies there
 */
export async function copyObject(
  bucket: Bucket,
  from: string,
  to: string,
  {
    beforeIt,
    late,
    ...options
  }: AskOptions & { readonly beforeIt?: () => Promise<void>; readonly late?: AbortSignal | undefined },
): Promise<void> {
  const original = await bucket.findThere(from, options);
  const { size, etag } = original;
  const range = { key: from, etag, start: 0, length: size, isWhole: true };
  const parts = { headBytes: 0, ranges: [range], tailPartBytes: LEAST_PART_BYTES };
  await using copy = await ObjectAssembly.begin(bucket, to, { ...options, late, ...parts });
  await copy.send();
  await beforeIt?.();
  await assertAlike(bucket, original, await copy.complete(), { ...options, ranges: [range] });
}

/** A part of an object, in bytes. */
interface ByteRange {
  readonly start: number;
  readonly length: number;
}

/**
 * Compares both ends of each 32 MiB that two objects have in common, at the same places.
 * @throws {BackupError} `E_S3_FAILED`: the store has copied something else
 */
export async function assertAlike(
  bucket: Bucket,
  original: Pick<StoredObject, "key" | "etag">,
  copy: Pick<StoredObject, "key" | "etag">,
  { ranges, ...options }: AskOptions & { readonly ranges: readonly ByteRange[] },
): Promise<void> {
  const compare = async ([start, end]: readonly [number, number], signal: AbortSignal): Promise<void> => {
    const read = async ({ key, etag }: Pick<StoredObject, "key" | "etag">): Promise<Buffer> => {
      const bytes = Buffer.allocUnsafe(end - start);
      await bucket.readRange(key, bytes, start, { signal, etag });
      return bytes;
    };
    const [one, other] = await together(read(original), read(copy));
    if (one.equals(other)) return;
    const message = `${bucket.store} was asked to copy s3://${bucket.address.bucket}/${original.key} to ${copy.key}, and has put something else there, between bytes ${start} and ${end}: it does not copy what it is asked to`;
    throw new BackupError("E_S3_FAILED", message, { details: { key: copy.key } });
  };
  await allOrNone(ranges.flatMap(comparedIn), COMPARED_AT_ONCE, options.signal, compare);
}

/** From where to where bytes of a range are compared. */
function comparedIn({ start, length }: ByteRange): (readonly [number, number])[] {
  const end = start + length;
  const count = Math.ceil(length / COMPARED_BYTES);
  const bounds = Array.from({ length: count }, (_, i) => start + i * COMPARED_BYTES);
  return [...bounds, end].map((bound) => [
    Math.max(start, bound - END_BYTES),
    Math.min(end, bound + END_BYTES),
  ]);
}
