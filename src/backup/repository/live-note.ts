/**
 * Says beside a point that a guest runs on it, whose disks are being filled from it (`restore --live`). As
 * long as it is there a prune keeps the point, also while nobody reads it because nbdpull was killed. No file
 * that a manifest names can be called so.
 */
import { hostname } from "node:os";
import type { RecordFolder } from "../storage/record-folder.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { replaceRecord, sweepRecord } from "./replace-record.js";

const NAME = /^\.live\.[0-9a-f-]{36}\.json$/;

/** @param uuid of one live restore */
function nameOf(uuid: string): string {
  return `.live.${uuid}.json`;
}

/**
 * @param folder of the point
 * @param to a UUID of its own, and the folder of the guest's disks on this host
 * @throws the file system's error: EROFS, EACCES
 */
export async function noteLive(
  folder: RecordFolder,
  { uuid, disks }: { readonly uuid: string; readonly disks: string },
): Promise<void> {
  const content = { format: "nbdpull-live-note", version: 1, host: hostname(), disks };
  await replaceRecord(folder, nameOf(uuid), content);
  await folder.sync();
}

/** @throws the file system's error: EROFS, EACCES */
export async function forgetLive(folder: RecordFolder, uuid: string): Promise<void> {
  await sweepRecord(folder, nameOf(uuid));
  await folder.unlink(nameOf(uuid));
  await folder.sync();
}

/** Whoever can write to the repository can forge it: use it only to keep more. */
export async function isLive(folder: StoredFolder): Promise<boolean> {
  return hasLiveNote(await folder.names());
}

/** @param names of what is in a point's folder */
export function hasLiveNote(names: readonly string[]): boolean {
  return names.some((name) => NAME.test(name));
}
