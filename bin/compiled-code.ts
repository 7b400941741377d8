/** Keeps what V8 makes of our files, so that the next start need not compile them again. */

import { mkdirSync, readdirSync, realpathSync, rmSync, statSync } from "node:fs";
import * as module from "node:module";
import { homedir } from "node:os";
import { dirname, join } from "node:path";

const WRITABLE_BY_OTHERS = 0o022;

/**
 * Does nothing where Node can't (before 22.8), or where there is no folder that nobody else can write to:
 * whoever puts a file there decides what this program does, and it may be root's. Never fails.
 */
export function keepCompiledCode(): void {
  if (!("enableCompileCache" in module)) return;
  try {
    const folder = folderOfThisBuild();
    if (folder !== undefined) (module.enableCompileCache as (folder: string) => unknown)(folder);
  } catch {
    // A home that is read-only, missing or somebody else's: the start takes a little longer.
  }
}

/** The name of the file that all commands share, which its content is part of. */
const BUILD = /^command-line-.+\.js$/;

/** `~/.cache/nbdpull/BUILD`, made if it isn't there; undefined where the files are no build. */
function folderOfThisBuild(): string | undefined {
  const build = readdirSync(import.meta.dirname).find((name) => BUILD.test(name));
  if (build === undefined) return undefined;
  const told = process.env["XDG_CACHE_HOME"] ?? "";
  const cache = told.startsWith("/") ? unchangeable(told) : within(unchangeable(homedir()), ".cache").path;
  const ours = within(cache, "nbdpull");
  const folder = within(ours.path, build);
  // The files of an older build are of no use to this one. Whatever else is there is not ours to remove.
  if (folder.isNew) {
    for (const name of readdirSync(ours.path)) {
      if (name !== build && BUILD.test(name)) rmSync(join(ours.path, name), { recursive: true, force: true });
    }
  }
  return folder.path;
}

/** @param parent a path that {@link unchangeable} returned */
function within(parent: string, name: string): { readonly path: string; readonly isNew: boolean } {
  const path = join(parent, name);
  let isNew = true;
  try {
    mkdirSync(path, 0o700);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    isNew = false;
  }
  return { path: unchangeable(path), isNew };
}

/**
 * @returns the path without links
 * @throws another user than root and this one could change it, or there is no such folder
 */
function unchangeable(path: string): string {
  const real = realpathSync(path);
  for (let folder = real; ; folder = dirname(folder)) {
    const { uid, mode } = statSync(folder);
    const isOthers = uid !== 0 && uid !== process.geteuid?.();
    if (isOthers || (mode & WRITABLE_BY_OTHERS) !== 0) throw new Error(`others can change ${folder}`);
    if (folder === dirname(folder)) return real;
  }
}
