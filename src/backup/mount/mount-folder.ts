/** The folder that the disks are shown in: whose it is, what may be in it, and what a dead run left there. */
import { lstat, mkdir, open, readdir, realpath, rmdir, unlink } from "node:fs/promises";
import { join, resolve } from "node:path";
import { hasCode, PreconditionError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import { ChangeablePath, unchangeablePath } from "../host/unchangeable-path.js";
import { mountsIn } from "./fuse-mounts.js";

/** In the folder, so that a later run finds it. */
const SOCKET = ".nbdpull-mount.sock";

export class MountFolder {
  /** Without links. */
  readonly path: string;
  readonly #isOurs: boolean;

  private constructor(path: string, isOurs: boolean) {
    this.path = path;
    this.#isOurs = isOurs;
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
    if (taken !== undefined) {
      const message = `a point is mounted already at ${taken}: end that by nbdpull unmount ${wanted}, or name another folder`;
      throw new PreconditionError("E_MOUNTED", message, { details: { path: taken } });
    }
    await refuseChangeable(path);
    for (const name of await readdir(path)) {
      if (await isLeft(join(path, name), name)) continue;
      throw unfit(wanted, `it has files, such as ${name}: name an empty folder, or a new one`);
    }
    return new MountFolder(path, isNew);
  }

  get socket(): string {
    return join(this.path, SOCKET);
  }

  /** Makes the empty file that a disk will cover. */
  async fileFor(disk: string): Promise<string> {
    const path = join(this.path, disk);
    await unlink(path).catch(ignoreMissing);
    await using _ = await open(path, "wx", 0o600);
    return path;
  }

  /** Removes what was made in it, and the folder too if it is new. */
  async clear(): Promise<void> {
    await clearLeft(this.path);
    await this.abandon();
  }

  /** Removes the folder if it is new; what others have in it stays. */
  async abandon(): Promise<void> {
    if (this.#isOurs) await rmdir(this.path).catch(() => undefined);
  }
}

/**
 * Removes the empty files and the socket of runs that have ended. Nothing that has content is touched.
 * @returns how many there were
 */
export async function clearLeft(folder: string): Promise<number> {
  const mounted = await mountsIn(folder);
  let cleared = 0;
  for (const name of await readdir(folder)) {
    const path = join(folder, name);
    if (mounted.includes(path) || !(await isLeft(path, name))) continue;
    await unlink(path).catch(ignoreMissing);
    cleared += 1;
  }
  return cleared;
}

/** A file that a disk covered, which this user made and nobody wrote to, or our socket. */
async function isLeft(path: string, name: string): Promise<boolean> {
  const found = await lstat(path).catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
  if (found === undefined) return true;
  if (found.uid !== process.getuid?.()) return false;
  if (name === SOCKET) return found.isSocket();
  return found.isFile() && found.size === 0 && found.nlink === 1 && (found.mode & 0o777) === 0o600;
}

/** Whoever can change the folder could put a link there, and have a disk mounted over any file. */
async function refuseChangeable(path: string): Promise<void> {
  try {
    await unchangeablePath(join(path, SOCKET), [0, process.getuid?.() ?? 0]);
  } catch (error) {
    if (isMissing(error)) return;
    if (!(error instanceof ChangeablePath)) throw error;
    throw unfit(
      path,
      `${error.who} can change ${error.folder}, and so what is mounted there: name a folder of your own`,
    );
  }
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
