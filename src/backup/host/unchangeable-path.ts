/**
 * Tells the paths that only root (and who else is trusted) can have put there from those that others can
 * swap.
 */
import type { Stats } from "node:fs";
import { lstat, readlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isMissing } from "./durable-files.js";

/** As many links as the kernel follows. */
const MOST_LINKS = 40;
const WRITABLE_BY_OTHERS = 0o022;
const WRITABLE_BY_ALL = 0o002;
const STICKY = 0o1000;

/** A path whose end a user decides who is not trusted; `folder` is the one that the user can change. */
export class ChangeablePath extends Error {
  readonly folder: string;
  /** Who can: `user 1000`, `everybody`, `its group`. */
  readonly who: string;

  constructor(path: string, folder: string, who: string) {
    super(`another user than root can change ${folder}, and so put any file at ${path}`);
    this.folder = folder;
    this.who = who;
  }
}

/**
 * Follows links as far as root made them. Each folder is looked at before anything in it is believed, so
 * nobody but root can change the result afterwards.
 *
 * @param path absolute
 * @param users whose folders are trusted, by their numbers
 * @returns the path without links
 * @throws {ChangeablePath} another user can change what the path leads to
 * @throws the file system's error if there is nothing
 */
export async function unchangeablePath(path: string, users: readonly number[] = [0]): Promise<string> {
  let real = "/";
  /** Of `real`, if it was looked at as an entry: nobody could change it from then on. */
  let known: Stats | undefined;
  let links = 0;
  const names = path.split("/");
  for (let name = names.shift(); name !== undefined; name = names.shift()) {
    if (name === "" || name === ".") continue;
    if (name === "..") {
      real = dirname(real);
      known = undefined;
      continue;
    }
    const entry = join(real, name);
    const found = await lstat(entry).catch((error: unknown) => {
      if (isMissing(error)) return undefined;
      throw error;
    });
    const who = whoSwaps(known ?? (await lstat(real)), found, users);
    if (who !== undefined) throw new ChangeablePath(path, real, who);
    if (!found) throw Object.assign(new Error(`there is no ${entry}`), { code: "ENOENT" });
    if (!found.isSymbolicLink()) {
      real = entry;
      known = found;
      continue;
    }
    links += 1;
    if (links > MOST_LINKS) throw Object.assign(new Error(`too many links: ${path}`), { code: "ELOOP" });
    const target = await readlink(entry);
    if (target.startsWith("/")) [real, known] = ["/", undefined];
    names.unshift(...target.split("/"));
  }
  return real;
}

/**
 * Who can put something else in the place of `entry`, or make it if it is missing. In a sticky folder such as
 * /tmp, others can't replace what a trusted user made; but they can make hard links.
 */
function whoSwaps(folder: Stats, entry: Stats | undefined, users: readonly number[]): string | undefined {
  if (!users.includes(folder.uid)) return `user ${folder.uid}`;
  if ((folder.mode & WRITABLE_BY_OTHERS) === 0) return undefined;
  const isSticky = (folder.mode & STICKY) !== 0;
  const isSafe = !entry || (users.includes(entry.uid) && !(entry.isFile() && entry.nlink > 1));
  if (isSticky && isSafe) return undefined;
  return (folder.mode & WRITABLE_BY_ALL) === 0 ? "its group" : "everybody";
}
