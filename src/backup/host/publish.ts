import { randomBytes } from "node:crypto";
import { link, lstat, rename, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { PreconditionError, UsageError } from "../base/errors.js";
import { isMissing, syncFolder } from "./durable-files.js";
import { isWrittenByQemu } from "./qemu-locks.js";

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
 * @throws {PreconditionError} what would be replaced is open for writing in a QEMU
 */
export async function refuseTarget(path: string, force: boolean): Promise<void> {
  const folder = await stat(dirname(path)).catch(() => undefined);
  if (!folder?.isDirectory()) {
    throw new UsageError("E_NO_FOLDER", `the folder ${dirname(path)} does not exist: make it first`, {
      details: { path },
    });
  }
  const found = await statOf(path);
  if (!found) return;
  if (force && found.isFile()) {
    if (!(await isWrittenByQemu(path))) return;
    const message = `a QEMU has ${path} open for writing (does a guest run on it?), and would go on with a file that has no name any more: it was not touched. Shut the guest down, or name another file`;
    throw new PreconditionError("E_TARGET_IN_USE", message, { details: { path } });
  }
  const message = found.isFile()
    ? `${path} exists already and was not touched: name another file, or use --force to replace it`
    : `${path} is not a plain file and was not touched: name another file`;
  throw new UsageError("E_EXISTS", message, { details: { path } });
}

/**
 * Gives finished files their final names, the last one last: with it the whole counts as there. What is at `stale`
 * would describe the old content wrongly, so it goes first. If a name can't be given, none of the new files is left, and
 * what they replaced is back; a folder that can't be flushed is told, with all of them in place.
 *
 * @throws {UsageError} something has appeared meanwhile that may not be replaced
 */
export async function publish(
  files: readonly Finished[],
  options: { readonly sync: boolean; readonly force: boolean; readonly stale?: readonly string[] },
): Promise<void> {
  const { force, stale = [] } = options;
  for (const { final } of files) await refuseTarget(final, force);
  for (const path of stale) await refuseTarget(path, true);
  // One rename replaces a file whole, or not at all; several may end in between.
  const isAtOnce = files.length === 1 && stale.length === 0;
  const old: Finished[] = [];
  const done: string[] = [];
  try {
    const inTheWay = force && !isAtOnce ? files.map(({ final }) => final) : [];
    for (const path of [...stale, ...inTheWay]) old.push(...(await setAside(path)));
    for (const path of stale) await unlinkIfThere(path);
    for (const { temporary, final } of files) {
      if (force) await rename(temporary, final);
      else await place(temporary, final);
      done.push(final);
    }
  } catch (error) {
    for (const path of done) await unlinkIfThere(path);
    for (const { temporary, final } of old) await rename(temporary, final);
    // Of what was not replaced yet, which a rename to its own other name leaves as it is.
    for (const { temporary } of old) await unlinkIfThere(temporary);
    throw error;
  }
  for (const { temporary } of old) await unlinkIfThere(temporary);
  // They are complete now, and what they replaced is gone: a folder that can't be flushed is no reason to lose them too.
  if (options.sync) {
    for (const folder of new Set(files.map(({ final }) => dirname(final)))) await syncFolder(folder);
  }
}

/** Gives the file at `path`, if there is one, a second name, by which it outlives being replaced. */
async function setAside(path: string): Promise<Finished[]> {
  const temporary = temporaryPathFor(path);
  try {
    await place(path, temporary, { keep: true });
    return [{ temporary, final: path }];
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
}

/** How file systems without hard links say so. */
const NO_LINKS = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"]);

/** Unlike `rename`, a new link never replaces anything. Where a file system has no links, the look before has to do. */
async function place(from: string, to: string, { keep = false } = {}): Promise<void> {
  try {
    await link(from, to);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") await refuseTarget(to, false);
    if (code === undefined || !NO_LINKS.has(code)) throw error;
    await rename(from, to);
    return;
  }
  if (!keep) await unlink(from);
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
