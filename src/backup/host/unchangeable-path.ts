/** Tells the paths that only root can have put there from those that another user can swap. */
import type { Stats } from "node:fs";
import { lstat, readlink } from "node:fs/promises";
import { dirname, join } from "node:path";

/** As many links as the kernel follows. */
const MOST_LINKS = 40;
const WRITABLE_BY_OTHERS = 0o022;
const STICKY = 0o1000;

/** A path whose end another user than root decides; `folder` is the one that the user can change. */
export class ChangeablePath extends Error {
  readonly folder: string;

  constructor(path: string, folder: string) {
    super(`another user than root can change ${folder}, and so put any file at ${path}`);
    this.folder = folder;
  }
}

/**
 * Follows links as far as root made them. Each folder is looked at before anything in it is believed, so
 * nobody but root can change the result afterwards.
 *
 * @param path absolute
 * @returns the path without links
 * @throws {ChangeablePath} another user can change what the path leads to
 * @throws the file system's error if there is nothing
 */
export async function unchangeablePath(path: string): Promise<string> {
  let real = "/";
  let links = 0;
  const names = path.split("/");
  for (let name = names.shift(); name !== undefined; name = names.shift()) {
    if (name === "" || name === ".") continue;
    if (name === "..") {
      real = dirname(real);
      continue;
    }
    const entry = join(real, name);
    const found = await lstat(entry);
    if (canBeSwapped(await lstat(real), found)) throw new ChangeablePath(path, real);
    if (!found.isSymbolicLink()) {
      real = entry;
      continue;
    }
    links += 1;
    if (links > MOST_LINKS) throw Object.assign(new Error(`too many links: ${path}`), { code: "ELOOP" });
    const target = await readlink(entry);
    if (target.startsWith("/")) real = "/";
    names.unshift(...target.split("/"));
  }
  return real;
}

/** In a sticky folder such as /tmp, others can't replace what root made; but they can make hard links. */
function canBeSwapped(folder: Stats, entry: Stats): boolean {
  if (folder.uid !== 0) return true;
  if ((folder.mode & WRITABLE_BY_OTHERS) === 0) return false;
  return (folder.mode & STICKY) === 0 || entry.uid !== 0 || (entry.isFile() && entry.nlink > 1);
}
