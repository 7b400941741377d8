import { BackupError } from "../base/errors.js";
import type { AskOptions } from "../s3/asker.js";
import type { Lease } from "../s3/lease.js";
import { plainName } from "./aside-name.js";
import { copyObject } from "./copy-object.js";
import type { NotedUpload } from "./point-note.js";
import { replaceObject } from "./replace-object.js";
import type { Place } from "./store-place.js";
import { MOST_MANIFEST_BYTES } from "./stored-folder.js";
import type { MergeState } from "./stored-writing.js";

/** Each further try is one against a process that has lost the lease and does not know it. */
const MOST_TRIES = 5;

/**
 * Ends a merge of a point that its process has not ended: what was not committed is undone, and what a
 * committed one has left is removed. The lease is held.
 *
 * The process may live, and have requests on their way. Its uploads are ended first, so none can take the
 * place of an image any more. If there is anything of it, the manifest is replaced, so that one of its own,
 * which it sends if that is unchanged, comes too late.
 * @param options.uploads that its note tells of: a store may list some late
 * @throws {BackupError} `E_LEASE_LOST`; `E_S3_FAILED`: the store has copied something else back. What lies
 *   aside stays then, and the manifest names it
 * @throws {DamageError} `E_MANIFEST`: as `MergeState.text`
 */
export async function settleMerge(
  place: Place,
  lease: Lease,
  id: string,
  { uploads: noted, ...options }: AskOptions & { readonly uploads: readonly NotedUpload[] },
): Promise<void> {
  const { bucket, prefix, manifest, abilities } = place;
  const point = `${prefix}${id}/`;
  for (let tries = 0; tries < MOST_TRIES; tries += 1) {
    for (const { file, uploadId } of noted) {
      await bucket.abortUpload({ key: `${point}${file}`, uploadId }, options);
    }
    let uploads = noted.length;
    for await (const upload of bucket.pendingUploads(point, options)) {
      uploads += 1;
      await bucket.abortUpload(upload, options);
    }
    const found = await bucket.get(`${point}${manifest}`, MOST_MANIFEST_BYTES, options);
    const state = found && place.mergeState(found.bytes);
    // Nobody can tell what belongs to it.
    if (!state) return;
    const isTouched = uploads > 0 || state.aside.length > 0;
    if (!isTouched && (await leftFiles(place, id, state, options)).length === 0) return;
    // Before anything is copied: it may be that it can't be made.
    const bytes = Buffer.from(state.text());
    for (const { from, to } of state.aside) {
      await copyObject(bucket, `${point}${from}`, `${point}${to}`, {
        ...options,
        late: lease.late,
        beforeIt: () => lease.confirm(),
      });
    }
    await lease.confirm();
    const replaced = await replaceObject(bucket, `${point}${manifest}`, bytes, {
      ...options,
      abilities,
      etag: found.etag,
    });
    place.onChange();
    if (replaced === undefined) continue;
    await bucket.remove(await leftFiles(place, id, state, options), options);
    return;
  }
  const message = `point ${id} changes while a merge of it is undone: find out who else writes to ${place.path}, and run this again`;
  throw new BackupError("E_S3_FAILED", message, { details: { point: id } });
}

/** The keys of files that a merge has made, or would have removed, and that the manifest does not name. */
async function leftFiles(
  { bucket, prefix }: Pick<Place, "bucket" | "prefix">,
  id: string,
  state: MergeState,
  options: AskOptions,
): Promise<string[]> {
  const point = `${prefix}${id}/`;
  const names: string[] = [];
  for await (const { key } of bucket.list(point, options)) names.push(key.slice(point.length));
  return unnamed(names, state).map((name) => `${point}${name}`);
}

/** Files of a point that a merge has made, or would have removed, and that the manifest does not name. */
export function unnamed(names: readonly string[], state: MergeState): string[] {
  const [named, families] = [new Set(state.named), new Set(state.families)];
  return names.filter((name) => !named.has(name) && families.has(plainName(name)));
}
