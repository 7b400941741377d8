import { randomBytes } from "node:crypto";
import { anySignal } from "../../nbd/index.js";
import { BackupError } from "../base/errors.js";
import type { AskOptions } from "./asker.js";
import type { Bucket } from "./bucket.js";
import { Multipart } from "./multipart.js";

/** What a store answers that does not copy. */
const REFUSALS = new Set(
  ["LACKS", "ACCESS", "FAILED", "MISSING", "CHANGED", "TOO_LARGE", "TRUNCATED"].map((what) => `E_S3_${what}`),
);
/** For a copy of a kilobyte. A store that takes longer is used as one that makes none. */
const PATIENCE_MS = 30_000;

/**
 * Tries whether a store makes parts of other objects, and whether these are gone once they are removed: a
 * bucket that keeps versions would keep all that is copied twice.
 * @param from and
 * @param to keys of two small objects, which are made and removed
 * @throws {BackupError} `E_S3_UNREACHABLE`, or the signal's reason
 */
export async function copiesParts(
  bucket: Bucket,
  from: string,
  to: string,
  options: AskOptions,
  patienceMs = PATIENCE_MS,
): Promise<boolean> {
  const late = AbortSignal.timeout(patienceMs);
  const bounded = { ...options, signal: anySignal(options.signal, late) };
  const copy = new Multipart(bucket, to, bounded);
  try {
    const bytes = randomBytes(1024);
    const etag = await bucket.put(from, bytes, options);
    if (await bucket.keptVersion(from, options)) return false;
    const range = { key: from, etag, start: 0, length: bytes.length, isWhole: true };
    await copy.complete([await copy.copy(1, range)]);
    return (await bucket.get(to, bytes.length, bounded))?.bytes.equals(bytes) ?? false;
  } catch (error) {
    options.signal?.throwIfAborted();
    if (late.aborted || (error instanceof BackupError && REFUSALS.has(error.code))) return false;
    throw error;
  } finally {
    await copy.abort();
    await bucket.remove([from, to], options);
  }
}
