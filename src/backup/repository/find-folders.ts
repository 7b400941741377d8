import { stat } from "node:fs/promises";
import type { FilePlace } from "../image/readable-file.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import { isFolderName } from "./folder-name.js";

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

/** Only looks where a link leads; nothing is opened there. */
async function leadsToFolder(place: FilePlace): Promise<boolean> {
  if (typeof place !== "string") return false;
  return await stat(place).then(
    (found) => found.isDirectory(),
    () => false,
  );
}
