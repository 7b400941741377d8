import { randomBytes } from "node:crypto";
import { link, lstat, rename, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { UsageError } from "./errors.js";
import { isMissing, syncFolder } from "./files.js";

/** A file that was made under a temporary name. */
export interface Finished {
  readonly temporary: string;
  readonly final: string;
}

/** Where a file is made before it gets its name: beside it, hidden, and never the same twice. */
export function temporaryPathFor(path: string): string {
  return join(dirname(path), `.${basename(path)}.${randomBytes(4).toString("hex")}.partial`);
}

/**
 * To be asked before the work begins. What isn't a plain file (a device, a folder, a link) is never replaced.
 * @throws {UsageError} there is something at `path` that may not be replaced, or no folder to put it in
 */
export async function refuseTarget(path: string, force: boolean): Promise<void> {
  const folder = await stat(dirname(path)).catch(() => undefined);
  if (!folder?.isDirectory()) {
    throw new UsageError("E_NO_FOLDER", `the folder ${dirname(path)} does not exist: make it first`, {
      details: { path },
    });
  }
  const found = await statOf(path);
  if (!found || (force && found.isFile())) return;
  const message = found.isFile()
    ? `${path} exists already and was not touched: name another file, or use --force to replace it`
    : `${path} is not a plain file and was not touched: name another file`;
  throw new UsageError("E_EXISTS", message, { details: { path } });
}

/**
 * Gives finished files their final names, the last one last: with it the whole counts as there. What is at `stale`
 * would describe the old content wrongly, so it goes first. If a name can't be given, none of the new files is left; a
 * folder that can't be flushed is told, with all of them in place.
 *
 * @throws {UsageError} something has appeared meanwhile that may not be replaced
 */
export async function publish(
  files: readonly Finished[],
  options: { readonly sync: boolean; readonly force: boolean; readonly stale?: readonly string[] },
): Promise<void> {
  for (const { final } of files) await refuseTarget(final, options.force);
  for (const path of options.stale ?? []) await unlinkIfThere(path);
  const done: string[] = [];
  try {
    for (const { temporary, final } of files) {
      if (options.force) await rename(temporary, final);
      else await place(temporary, final);
      done.push(final);
    }
  } catch (error) {
    for (const path of done) await unlinkIfThere(path);
    throw error;
  }
  // They are complete now, and what they replaced is gone: a folder that can't be flushed is no reason to lose them too.
  if (options.sync) {
    for (const folder of new Set(files.map(({ final }) => dirname(final)))) await syncFolder(folder);
  }
}

/** How file systems without hard links say so. */
const NO_LINKS = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"]);

/** Unlike `rename`, a new link never replaces anything. Where a file system has no links, the look before has to do. */
async function place(temporary: string, final: string): Promise<void> {
  try {
    await link(temporary, final);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") await refuseTarget(final, false);
    if (code === undefined || !NO_LINKS.has(code)) throw error;
    await rename(temporary, final);
    return;
  }
  await unlink(temporary);
}

async function statOf(path: string): Promise<Awaited<ReturnType<typeof lstat>> | undefined> {
  return await lstat(path).catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
}

async function unlinkIfThere(path: string): Promise<void> {
  await unlink(path).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
  });
}
