import { stat } from "node:fs/promises";
import { hasCode } from "../base/errors.js";
import type { FilePlace } from "../image/readable-file.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { isFolderName, LOST_AND_FOUND } from "./folder-name.js";
import { pointNamesIn } from "./pending-point.js";

/** Names of the folders that may have points, sorted; a link to a folder is one of them. */
export async function findFolders(root: StoredFolder): Promise<string[]> {
  const names: string[] = [];
  for (const entry of await root.entries()) {
    const isFolder =
      entry.isDirectory() || (entry.isSymbolicLink() && (await leadsToFolder(root.at(entry.name))));
    if (isFolder && isFolderName(entry.name)) names.push(entry.name);
  }
  return names.sort();
}

/**
 * Names of the folders that have points, sorted.
 * @throws {DamageError} `E_LINK`: a symbolic link leads to a folder that would be a domain's
 */
export async function foldersWithPoints(root: StoredFolder): Promise<string[]> {
  const names: string[] = [];
  // One after the other: each takes descriptors, and others may have made any number of folders.
  for (const name of await findFolders(root)) if (await hasPoints(root, name)) names.push(name);
  return names;
}

async function hasPoints(root: StoredFolder, name: string): Promise<boolean> {
  try {
    await using folder = await root.folder(name);
    return folder !== undefined && (await pointNamesIn(folder)).length > 0;
  } catch (error) {
    // The file system's own, which only root may read. A domain may be called so, though.
    if (name === LOST_AND_FOUND && hasCode(error, "EACCES")) return false;
    throw error;
  }
}

/** Only looks where a link leads; nothing is opened there. */
async function leadsToFolder(place: FilePlace): Promise<boolean> {
  if (typeof place !== "string") return false;
  return await stat(place).then(
    (found) => found.isDirectory(),
    () => false,
  );
}
