import { link, lstat, rename, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { explained, messageOf, PreconditionError, UsageError } from "../base/errors.js";
import { isMissing, syncFolder } from "./durable-files.js";
import { HeldFolder } from "./held-folder.js";
import { isWrittenByQemu } from "./qemu-locks.js";

/** A file that was made under a temporary name. */
export interface Finished {
  readonly temporary: string;
  readonly final: string;
}

/**
 * The path at which a file is made before it gets its name: in the same folder, hidden, and never the same
 * twice. Each process begins its random numbers with what the system gives it, so nobody else knows them;
 * `node:crypto` would take 3 ms to load.
 */
export function temporaryPathFor(path: string): string {
  const unused = Math.floor(Math.random() * 2 ** 32).toString(16);
  return join(dirname(path), `.${basename(path)}.${unused.padStart(8, "0")}.partial`);
}

/**
 * Throws if `path` must not be written. Call it before the work begins. Anything other than a plain file (a
 * device, a folder, a link) is never replaced.
 * @throws {UsageError} something at `path` must not be replaced, or its folder doesn't exist
 * @throws {PreconditionError} a QEMU has the file at `path` open for writing
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
    const message = `a QEMU has ${path} open for writing (does a guest run on it?) and would keep writing to the old file: it was not replaced. Shut the guest down, or name another file`;
    throw new PreconditionError("E_TARGET_IN_USE", message, { details: { path } });
  }
  const message = found.isFile()
    ? `${path} exists already and was not touched: name another file, or use --force to replace it`
    : `${path} is not a plain file and was not touched: name another file`;
  throw new UsageError("E_EXISTS", message, { details: { path } });
}

/**
 * Gives finished files their final names. The last file gets its name last: it marks the whole as complete.
 * The files at `stale` no longer match the content, so they are removed first. If a name can't be given, the
 * new files are removed and the files that they replaced are restored; the error says where one is that could
 * not be. If a folder can't be flushed, this throws, but the new files stay in place.
 *
 * @throws {UsageError} meanwhile something has appeared that must not be replaced
 */
export async function publish(
  files: readonly Finished[],
  options: { readonly sync: boolean; readonly force: boolean; readonly stale?: readonly string[] },
): Promise<void> {
  const { force, stale = [] } = options;
  for (const { final } of files) await refuseTarget(final, force);
  for (const path of stale) await refuseTarget(path, true);
  // One rename replaces a file completely or not at all. A series of renames can be interrupted.
  const isAtOnce = files.length === 1 && stale.length === 0;
  const old: Finished[] = [];
  const done: string[] = [];
  try {
    const inTheWay = force && !isAtOnce ? files.map(({ final }) => final) : [];
    for (const path of [...stale, ...inTheWay]) old.push(...(await setAside(path)));
    for (const path of stale) await unlinkIfThere(path);
    for (const { temporary, final } of files) {
      await share(temporary, dirname(final));
      if (force) await rename(temporary, final);
      else await place(temporary, final);
      done.push(final);
    }
  } catch (error) {
    for (const path of done) await unlinkIfThere(path).catch(() => undefined);
    const failures = await putBack(old);
    if (failures.length === 0) throw error;
    const what = failures.map(({ temporary, final, reason }) => `${final} is at ${temporary} (${reason})`);
    const message = `${messageOf(error)}. Old files could not be put back, and have to be renamed by hand: ${what.join("; ")}`;
    throw explained(error, message, { putBack: failures });
  }
  for (const { temporary } of old) await unlinkIfThere(temporary);
  // The new files are complete and the old ones are gone, so a folder that can't be flushed is no reason to
  // remove them.
  if (options.sync) {
    for (const folder of new Set(files.map(({ final }) => dirname(final)))) await syncFolder(folder);
  }
}

/** In a folder with the setgid bit, its group gets the rights to the file that it has to the folder. */
async function share(path: string, folder: string): Promise<void> {
  // Where this user can't list the folder, nobody has set that bit for him.
  const held = await HeldFolder.open(folder).catch(() => undefined);
  await using _ = held;
  if (dirname(path) === folder) await held?.shareFile(basename(path));
}

/** Gives files their old names back. @returns those for which that failed, and why */
async function putBack(old: readonly Finished[]): Promise<(Finished & { readonly reason: string })[]> {
  const failures: (Finished & { readonly reason: string })[] = [];
  for (const file of old) {
    try {
      await rename(file.temporary, file.final);
      // If the old file was not replaced yet, both names are the same file, and the rename leaves both.
      await unlinkIfThere(file.temporary);
    } catch (reason) {
      failures.push({ ...file, reason: messageOf(reason) });
    }
  }
  return failures;
}

/** Gives the file at `path`, if there is one, a second name, so that it survives being replaced. */
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

/** The error codes of file systems without hard links. */
const NO_LINKS = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"]);

/**
 * Unlike `rename`, a new link never replaces anything. Without hard links, the earlier check has to suffice.
 */
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
