/** The objects of a point in an object store, whether it is one or not. */
import { PreconditionError } from "../base/errors.js";
import type { AskOptions } from "../s3/asker.js";
import type { Place } from "./store-place.js";

/** Others may have put any number of objects there. */
const KEYS_AT_ONCE = 1_000;

/**
 * What a manifest alone makes is no point: a run put it whose files had been cleared away before. Records
 * beside it, whose names begin with a dot, are no files of a point.
 */
export async function whatIsThere(
  { bucket, prefix, manifest }: Place,
  id: string,
  options: AskOptions,
): Promise<"point" | "manifest alone" | "no manifest"> {
  const point = `${prefix}${id}/`;
  if (!(await bucket.find(`${point}${manifest}`, options))) return "no manifest";
  for await (const { key } of bucket.list(point, options)) {
    const name = key.slice(point.length);
    if (name !== manifest && !name.startsWith(".") && !key.endsWith("/")) return "point";
  }
  return "manifest alone";
}

/**
 * Another program may be copying a point there. It would be mixed with ours, and removed with it.
 * @throws {PreconditionError} `E_FOREIGN_OBJECTS`
 */
export async function assertNothingThere(
  { bucket, prefix, path }: Place,
  id: string,
  options: AskOptions,
): Promise<void> {
  const found = async (what: string, those: AsyncIterable<{ readonly key: string }>): Promise<void> => {
    for await (const { key } of those) {
      if (key === `${prefix}${id}/`) continue;
      const message = `${path}/${id} has ${what} that no run of nbdpull has begun (${key.slice(prefix.length)}), so no point is made there: wait if another program is copying there; otherwise look at what it is, and remove it`;
      throw new PreconditionError("E_FOREIGN_OBJECTS", message, { details: { key } });
    }
  };
  await found("an object", bucket.list(`${prefix}${id}/`, options));
  await found("an upload", bucket.pendingUploads(`${prefix}${id}/`, options));
}

/** Removes the files of a point that is none, and what was uploaded for them. */
export async function removeFiles(
  { bucket, prefix }: Pick<Place, "bucket" | "prefix">,
  id: string,
  options: AskOptions,
): Promise<void> {
  for await (const upload of bucket.pendingUploads(`${prefix}${id}/`, options)) {
    await bucket.abortUpload(upload, options);
  }
  let keys: string[] = [];
  for await (const { key } of bucket.list(`${prefix}${id}/`, options)) {
    keys.push(key);
    if (keys.length < KEYS_AT_ONCE) continue;
    await bucket.remove(keys, options);
    keys = [];
  }
  await bucket.remove(keys, options);
}
