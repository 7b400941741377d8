import { randomBytes, randomUUID } from "node:crypto";
import { BackupError, hasCode, PreconditionError } from "../base/errors.js";
import { type LACKS, type StoreAbilities, unlessLacking } from "./abilities.js";
import type { AskOptions } from "./asker.js";
import type { Bucket } from "./bucket.js";
import { ObjectUpload } from "./upload.js";

const MIB = 1024 * 1024;
/** No look takes so long. */
const LEFT_MS = 3_600_000;
/** How long a look clears up that has failed: the store may be silent. */
const CLEAR_MS = 2_000;

/**
 * Tries with small objects of its own what a repository needs of a store, and removes them.
 * @throws {PreconditionError} `E_S3_LACKS`: uploads in parts, ranges or removing do not work; or the
 *   credentials may not do it: `E_S3_ACCESS`
 */
export async function probe(bucket: Bucket, options: AskOptions = {}): Promise<StoreAbilities> {
  const base = `${prefixOf(bucket)}${randomUUID()}`;
  const keys = [`${base}/small`, `${base}/parts`];
  const [small = "", large = ""] = keys;
  try {
    const abilities = await tryConditions(bucket, small, options);
    await tryParts(bucket, large, options);
    await bucket.remove(keys, options);
    for (const key of keys) {
      if (await bucket.find(key, options)) throw lacks(bucket, "remove an object");
    }
    return abilities;
  } catch (error) {
    await removeSoon(bucket, keys);
    throw error;
  }
}

/**
 * Tries only whether the store takes notice of conditions, with a small object. What such a look has left
 * that was killed is removed an hour later.
 * @throws {PreconditionError} as `probe`
 */
export async function probeConditions(bucket: Bucket, options: AskOptions = {}): Promise<StoreAbilities> {
  const base = prefixOf(bucket);
  const key = `${base}${randomUUID()}/small`;
  try {
    const abilities = await tryConditions(bucket, key, options);
    const now = (await bucket.find(key, options))?.modifiedAt.getTime() ?? 0;
    const old: string[] = [];
    for await (const each of bucket.list(base, options)) {
      // Both by the store's clock.
      if (each.modifiedAt.getTime() < now - LEFT_MS) old.push(each.key);
    }
    await bucket.remove([key, ...old], options);
    return abilities;
  } catch (error) {
    await removeSoon(bucket, [key]);
    throw error;
  }
}

/** What is left then is removed by a later look. */
async function removeSoon(bucket: Bucket, keys: readonly string[]): Promise<void> {
  const signal = AbortSignal.timeout(CLEAR_MS);
  await bucket
    .withSignal(undefined)
    .remove(keys, { signal })
    .catch(() => undefined);
}

/** Removes the objects and uploads that probes have left whose processes were killed. */
export async function removeProbes(bucket: Bucket, options: AskOptions = {}): Promise<void> {
  for await (const { key } of bucket.list(prefixOf(bucket), options)) await bucket.remove([key], options);
  for await (const upload of bucket.pendingUploads(prefixOf(bucket), options)) {
    await bucket.abortUpload(upload, options);
  }
}

/** Of the keys of all probes. */
function prefixOf(bucket: Bucket): string {
  return `${bucket.address.prefix}.probe-`;
}

async function tryConditions(bucket: Bucket, key: string, options: AskOptions): Promise<StoreAbilities> {
  const [first, second, third] = [Buffer.from("first"), Buffer.from("second"), Buffer.from("third")];
  const created = await unlessLacking(() => bucket.putIfAbsent(key, first, options));
  if (created !== true) await bucket.put(key, first, options);
  const again = await unlessLacking(() => bucket.putIfAbsent(key, second, options));
  await bucket.put(key, first, options);
  const before = await bucket.find(key, options);
  await bucket.put(key, third, options);
  const etag = before?.etag ?? "";
  const replace = (old: string): Promise<string | undefined | typeof LACKS> =>
    unlessLacking(() => bucket.replaceIfUnchanged(key, second, { ...options, etag: old }));
  const overwritten = await replace(etag);
  const now = await bucket.find(key, options);
  await tryTelling(bucket, key, { ...options, etag });
  const right = now && (await replace(now.etag));
  return {
    conditionalCreate: again === false,
    conditionalReplace: typeof overwritten !== "string" && typeof right === "string",
  };
}

/** What is read later has to be what was listed, so an object that was replaced must be known by its ETag. */
async function tryTelling(
  bucket: Bucket,
  key: string,
  replaced: AskOptions & { readonly etag: string },
): Promise<void> {
  try {
    await bucket.readRange(key, Buffer.alloc(1), 0, replaced);
  } catch (error) {
    if (hasCode(error, "E_S3_CHANGED")) return;
    throw error;
  }
  throw lacks(bucket, "tell an object from the one that it has replaced (by ETag and If-Match)");
}

/** An object in two parts, and a range across them. */
async function tryParts(bucket: Bucket, key: string, options: AskOptions): Promise<void> {
  const bytes = randomBytes(9 * MIB);
  await using upload = new ObjectUpload(bucket, key, { ...options, mostBytes: bytes.length });
  for (let done = 0; done < bytes.length; done += MIB)
    upload.writeNow(bytes.subarray(done, done + MIB), done);
  const { etag } = await upload.finish();
  const range = Buffer.alloc(MIB);
  const from = 7.5 * MIB;
  await bucket.readRange(key, range, from, { ...options, etag });
  if (!range.equals(bytes.subarray(from, from + MIB))) {
    throw new BackupError(
      "E_S3_FAILED",
      `${bucket.store} returned other bytes than were written: do not use it`,
    );
  }
}

function lacks(bucket: Bucket, what: string): PreconditionError {
  const message = `${bucket.store} does not ${what}: docs/stores.md says what is needed`;
  return new PreconditionError("E_S3_LACKS", message);
}
