/** Small JSON files beside a manifest, which are replaced now and then. */
import type { RecordFolder } from "../storage/record-folder.js";

/** @throws the file system's error: EROFS, EACCES */
export async function replaceRecord(folder: RecordFolder, name: string, content: unknown): Promise<void> {
  await sweepRecord(folder, name);
  await folder.replace(name, `${JSON.stringify(content, null, 2)}\n`);
}

/**
 * Removes what writers of that record have left that were killed.
 * @returns the names in the folder before
 */
export async function sweepRecord(folder: RecordFolder, name: string): Promise<readonly string[]> {
  const names = await folder.names();
  for (const left of names) if (left.startsWith(`.${name}.`)) await folder.unlink(left);
  return names;
}
