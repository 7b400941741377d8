/** The folder that the disks are shown in: whose it is, what may be in it, and what a dead run left there. */
import { lstat, mkdir, open, readdir, realpath, rm, rmdir, unlink } from "node:fs/promises";
import { join, resolve } from "node:path";
import { hasCode, PreconditionError } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import { isMissing } from "../host/durable-files.js";
import { ChangeablePath, unchangeablePath } from "../host/unchangeable-path.js";
import { isDiskName } from "../repository/manifest.js";
import { isDeadMount, mountsIn, unmount } from "./fuse-mounts.js";

/**
 * In the folder, so that a later run finds it. It is there before the first disk's file, and goes after the
 * last: without it, no file in the folder is one of ours.
 */
export const MOUNT_SOCKET = ".nbdpull-mount.sock";
/** The folder of file systems, if files are shown instead of disks. */
const FILES = "files";
/** The folder that libguestfs keeps its own files in. It has content, also of a run that was killed. */
const TEMPORARY = ".nbdpull-guestfs";

export class MountFolder {
  /** Without links. */
  readonly path: string;
  readonly #isOurs: boolean;
  /** The names of the disks' files that were made here, or that a dead run left. */
  readonly #names: Set<string>;

  private constructor(path: string, isOurs: boolean, names: Iterable<string>) {
    this.path = path;
    this.#isOurs = isOurs;
    this.#names = new Set(names);
  }

  /**
   * Opens an empty folder, or makes it. What a run left that was killed counts for nothing.
   * @throws {PreconditionError} `E_MOUNTED`: a point is mounted there; `E_MOUNT_FOLDER`: it has files, is no
   *   folder, or others can change it
   */
  static async prepare(wanted: string): Promise<MountFolder> {
    const asked = resolve(wanted);
    const isNew = await made(asked);
    const path = await realpath(asked);
    if (!(await lstat(path)).isDirectory()) throw unfit(wanted, "it is no folder");
    const [taken] = await mountsIn(path);
    if (taken !== undefined && (await isDeadMount(taken))) await unmount(taken, { lazily: true });
    else if (taken !== undefined) {
      const message = `a point is mounted already at ${taken}: end that by nbdpull unmount ${shellWord(wanted)}, or name another folder`;
      throw new PreconditionError("E_MOUNTED", message, { details: { path: taken } });
    }
    const who = await whoChanges(path);
    if (who !== undefined) {
      throw unfit(path, `${who}, and so what is mounted there: name a folder of your own`);
    }
    const names = await readdir(path);
    const left = await leftIn(path, names);
    const other = names.find((name) => !left.includes(name));
    if (other !== undefined) {
      throw unfit(wanted, `it has files, such as ${other}: name an empty folder, or a new one`);
    }
    return new MountFolder(
      path,
      isNew,
      left.filter((name) => name !== MOUNT_SOCKET),
    );
  }

  get socket(): string {
    return join(this.path, MOUNT_SOCKET);
  }

  /** Makes the empty file that a disk will cover. */
  async fileFor(disk: string): Promise<string> {
    const path = join(this.path, disk);
    await unlink(path).catch(ignoreMissing);
    await using _ = await open(path, "wx", 0o600);
    this.#names.add(disk);
    return path;
  }

  /** Makes the empty folder that file systems will cover. */
  async folderForFiles(): Promise<string> {
    return await this.#folder(FILES);
  }

  /** Makes the folder for what libguestfs keeps while it runs. */
  async temporary(): Promise<string> {
    await removeLeft(this.path, [TEMPORARY]);
    return await this.#folder(TEMPORARY);
  }

  async #folder(name: string): Promise<string> {
    const path = join(this.path, name);
    this.#names.add(name);
    await mkdir(path, { mode: 0o700 }).catch((error: unknown) => {
      if (!hasCode(error, "EEXIST")) throw error;
    });
    return path;
  }

  /** Removes the files of the disks, but of those that are still mounted. Call it before the socket goes. */
  async clear(): Promise<void> {
    await removeLeft(this.path, [...this.#names]);
  }

  /** Removes the folder if it is new; what others have in it stays. */
  async abandon(): Promise<void> {
    if (this.#isOurs) await rmdir(this.path).catch(() => undefined);
  }
}

/**
 * Removes the empty files and the socket of runs that have ended, and libguestfs' own folder. Nothing else
 * that has content is touched, and nothing at all where neither a mount of ours was nor our socket is: other
 * programs have empty files too.
 * @param mounted the paths in it that were mounted until now
 * @returns how many there were
 * @throws {PreconditionError} `E_MOUNT_FOLDER`: others can change the folder
 */
export async function clearLeft(folder: string, mounted: readonly string[]): Promise<number> {
  const left = await leftIn(folder, await readdir(folder), { wasOurs: mounted.length > 0 });
  if (left.length === 0) return 0;
  const who = await whoChanges(folder);
  if (who !== undefined) {
    const message = `what nbdpull left in ${folder} stays, because ${who}: see to it that nobody else can, and unmount again`;
    throw new PreconditionError("E_MOUNT_FOLDER", message, { details: { path: folder } });
  }
  return await removeLeft(folder, left);
}

/** Those names in a folder that a run of ours left there, or has there while it runs; the socket is last. */
async function leftIn(folder: string, names: readonly string[], { wasOurs = false } = {}): Promise<string[]> {
  const socket: string[] = [];
  if (names.includes(MOUNT_SOCKET) && (await isLeft(join(folder, MOUNT_SOCKET), MOUNT_SOCKET)))
    socket.push(MOUNT_SOCKET);
  if (socket.length === 0 && !wasOurs) return [];
  const files: string[] = [];
  for (const name of names) {
    if ((isDiskName(name) || name === TEMPORARY) && (await isLeft(join(folder, name), name)))
      files.push(name);
  }
  return [...files, ...socket];
}

/** @returns how many there were */
async function removeLeft(folder: string, names: readonly string[]): Promise<number> {
  const mounted = await mountsIn(folder);
  let removed = 0;
  for (const name of names) {
    const path = join(folder, name);
    if (mounted.includes(path) || !(await isLeft(path, name))) continue;
    // Links in it are removed, not followed.
    if (name === TEMPORARY) await rm(path, { recursive: true, force: true });
    else await (name === FILES && (await isFolder(path)) ? rmdir : unlink)(path).catch(ignoreMissing);
    removed += 1;
  }
  return removed;
}

async function isFolder(path: string): Promise<boolean> {
  return (await lstat(path).catch(() => undefined))?.isDirectory() ?? false;
}

/** What was covered by a mount, which this user made and in which is nothing, or our socket. */
async function isLeft(path: string, name: string): Promise<boolean> {
  const found = await lstat(path).catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
  if (found === undefined) return true;
  if (found.uid !== process.getuid?.()) return false;
  if (name === MOUNT_SOCKET) return found.isSocket();
  if (name === TEMPORARY) return found.isDirectory() && (found.mode & 0o777) === 0o700;
  if (name === FILES && found.isDirectory()) {
    return (found.mode & 0o777) === 0o700 && (await readdir(path)).length === 0;
  }
  return found.isFile() && found.size === 0 && found.nlink === 1 && (found.mode & 0o777) === 0o600;
}

/**
 * Who else can change the folder: they could put a link there, and have a disk mounted over any file, or any
 * file removed.
 */
async function whoChanges(path: string): Promise<string | undefined> {
  try {
    await unchangeablePath(join(path, MOUNT_SOCKET), [0, process.getuid?.() ?? 0]);
  } catch (error) {
    if (error instanceof ChangeablePath) return `${error.who} can change ${error.folder}`;
    if (!isMissing(error)) throw error;
  }
  return undefined;
}

/** @returns whether there was nothing before */
async function made(folder: string): Promise<boolean> {
  try {
    await mkdir(folder, { mode: 0o700 });
    return true;
  } catch (error) {
    if (hasCode(error, "EEXIST")) return false;
    if (isMissing(error)) throw unfit(folder, "there is no folder to make it in");
    throw error;
  }
}

function ignoreMissing(error: unknown): void {
  if (!isMissing(error)) throw error;
}

function unfit(path: string, why: string): PreconditionError {
  const message = `nothing can be mounted at ${path}: ${why}`;
  return new PreconditionError("E_MOUNT_FOLDER", message, { details: { path } });
}
