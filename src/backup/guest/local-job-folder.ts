/** The file system that the folder of a job is in: this host's, or another's. */
import {
  chmod,
  chown,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
  unlink,
  writeFile,
} from "node:fs/promises";
import { dirname, join } from "node:path";
import { PreconditionError, UsageError } from "../base/errors.js";
import { exists, isMissing } from "../host/durable-files.js";
import type { QemuUser } from "../libvirt/domain-xml.js";

/** What the folder holds; the note tells who works there. */
export const NOTE = "owner.json";
export const QEMU = "qemu";
export const FROZEN = "frozen";

/** What was found under the name of a job's folder. */
export interface FoundFolder {
  readonly isFolder: boolean;
  readonly uid: number;
  /** It belongs to root or to this user: nobody else could have put anything there. */
  readonly ours: boolean;
  /** Read only where it is a folder and ours. */
  readonly note: string | undefined;
  readonly frozen: boolean;
}

/** Paths are absolute. */
export interface JobPlace {
  /** Undefined where nothing is. */
  look(path: string): Promise<FoundFolder | undefined>;
  /**
   * Makes the folder with the note in it, and a folder of QEMU's own, in one step: it is never seen without.
   * @throws {PreconditionError} `E_QEMU_USER`: QEMU could not write there
   * @throws {UsageError} `E_SCRATCH_PATH`: what it would be made in is not there
   */
  create(path: string, note: string, qemu: QemuUser | undefined): Promise<void>;
  setFrozen(path: string, frozen: boolean): Promise<void>;
  /** Cuts connections that outlived their client, where there can be such. */
  sever(path: string): Promise<void>;
  /** Removes it, if it is there. Nothing is followed out of it: a part of it belongs to QEMU's user. */
  remove(path: string): Promise<void>;
}

export class LocalPlace implements JobPlace {
  async look(path: string): Promise<FoundFolder | undefined> {
    const found = await lstat(path).catch(undefinedIfMissing);
    if (!found) return undefined;
    const isFolder = found.isDirectory();
    const ours = [0, process.getuid?.()].includes(found.uid);
    if (!isFolder || !ours) return { isFolder, uid: found.uid, ours, note: undefined, frozen: false };
    return {
      isFolder,
      uid: found.uid,
      ours,
      note: await readFile(join(path, NOTE), "utf8").catch(undefinedIfMissing),
      frozen: await exists(join(path, FROZEN)),
    };
  }

  async create(path: string, note: string, qemu: QemuUser | undefined): Promise<void> {
    const uid = process.getuid?.() ?? 0;
    if (qemu && uid !== 0 && qemu.uid !== uid) throw qemuUserError(qemu, "run nbdpull as root");
    const fresh = await mkdtemp(join(dirname(path), ".nbdpull-")).catch((cause: unknown) => {
      throw isMissing(cause) ? noParentError(dirname(path), cause) : cause;
    });
    try {
      await writeFile(join(fresh, NOTE), note);
      await mkdir(join(fresh, QEMU), { mode: 0o700 });
      if (qemu && uid === 0) {
        await chown(join(fresh, QEMU), qemu.uid, qemu.gid);
        // QEMU passes through to its own folder, and reads nothing of ours on the way.
        await chmod(fresh, 0o711);
      }
      await rename(fresh, path);
    } catch (error) {
      await rm(fresh, { recursive: true, force: true });
      throw error;
    }
  }

  async setFrozen(path: string, frozen: boolean): Promise<void> {
    if (frozen) await writeFile(join(path, FROZEN), "");
    else await rm(join(path, FROZEN), { force: true });
  }

  /** Connections of this host end with their client. */
  async sever(): Promise<void> {}

  async remove(path: string): Promise<void> {
    for (const folder of [join(path, QEMU), path]) {
      const entries = (await readdir(folder, { withFileTypes: true }).catch(undefinedIfMissing)) ?? [];
      for (const entry of entries) if (!entry.isDirectory()) await unlink(join(folder, entry.name));
      await rmdir(folder).catch(undefinedIfMissing);
    }
  }
}

export function qemuUserError({ uid }: QemuUser, remedy: string): PreconditionError {
  const message = `the domain's QEMU runs as user ${uid}, and only root can give that user a folder of its own for socket and scratch files: ${remedy}`;
  return new PreconditionError("E_QEMU_USER", message, { details: { uid } });
}

export function noParentError(path: string, cause: unknown): UsageError {
  const message = `${path} is not there: name a folder with --scratch that the domain's QEMU can reach`;
  return new UsageError("E_SCRATCH_PATH", message, { cause, details: { path } });
}

function undefinedIfMissing(error: unknown): undefined {
  if (isMissing(error)) return undefined;
  throw error;
}
