/** Access to the file system that a job's folder is in, on this host or another; here for this host. */
import { chmod, chown, lstat, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { hasCode, PreconditionError, UsageError } from "../base/errors.js";

import { isMissing } from "../host/durable-files.js";
import { HeldFolder } from "../host/held-folder.js";
import { ChangeablePath, unchangeablePath } from "../host/unchangeable-path.js";

import type { QemuUser } from "../libvirt/documents/domain-xml.js";
import { type MarkedDomain, runHere } from "./frozen-mark.js";

/** Names inside the folder; the note names the process that works there. */
export const NOTE = "owner.json";
export const QEMU = "qemu";
export const FROZEN = "frozen";
export const SECRET = "secret";

/** What exists at the path of a job's folder. */
export interface FoundFolder {
  readonly isFolder: boolean;
  readonly uid: number;
  /** Whether it belongs to root or to this user, so that nobody else can have written to it. */
  readonly ours: boolean;
  /** Undefined unless it is a folder and ours. */
  readonly note: string | undefined;
  /** The mark of the domain's run that may be frozen; undefined: none is. */
  readonly frozen: string | undefined;
}

/** What a new folder has in it. */
export interface NewContent {
  readonly note: string;
  /** Only its owner can read it, though QEMU's user may enter the folder. */
  readonly secret?: string | undefined;
}

export interface CutOptions {
  /** The line that is meant; default: the present one. One that was opened later is left alone. */
  readonly line?: string | undefined;
  /** Ends the attempt. */
  readonly signal?: AbortSignal | undefined;
}

/** A file system that can hold job folders. All paths are absolute. */
export interface JobPlace {
  /**
   * Undefined if nothing exists there.
   * @throws {PreconditionError} `E_SCRATCH_OWNER`: another user can put anything there at any moment
   */
  look(path: string): Promise<FoundFolder | undefined>;
  /**
   * Makes the folder atomically, with the note and QEMU's own folder in it, and with the secret if there is
   * one.
   * @throws {PreconditionError} `E_QEMU_USER`: QEMU could not write there
   * @throws {PreconditionError} `E_SCRATCH_OWNER`: as `look`
   * @throws {UsageError} `E_SCRATCH_PATH`: its parent folder does not exist
   */
  create(path: string, content: NewContent, qemu: QemuUser | undefined): Promise<void>;
  /** Undefined: there is none, or this user can't read it. */
  secret(path: string): Promise<string | undefined>;
  /** Puts another note in the place of the folder's. */
  renote(path: string, note: string): Promise<void>;
  /** @param mark undefined: it is frozen no longer */
  setFrozen(path: string, mark: string | undefined): Promise<void>;
  /** The boot of that host, and the start of the domain's QEMU there, as in a mark. */
  runThere(domain: MarkedDomain): Promise<string>;
  /** Bytes that the files in QEMU's own folder occupy. */
  usedBytes(path: string): Promise<number>;
  /** What holds the connections of the folder's process there, if it runs; undefined on this host. */
  line(path: string): Promise<string | undefined>;
  /** Cuts connections that outlived their client, if there are any. */
  sever(path: string, options?: CutOptions): Promise<void>;
  /** Removes it, if it exists. Does not follow links, because QEMU's user can write to a part of it. */
  remove(path: string): Promise<void>;
}

export class LocalPlace implements JobPlace {
  async look(path: string): Promise<FoundFolder | undefined> {
    await refuseParentOfOthers(path);
    const found = await lstat(path).catch(undefinedIfMissing);
    if (!found) return undefined;
    const isFolder = found.isDirectory();
    const ours = [0, process.getuid?.()].includes(found.uid);
    if (!isFolder || !ours) return { isFolder, uid: found.uid, ours, note: undefined, frozen: undefined };
    return {
      isFolder,
      uid: found.uid,
      ours,
      note: await readFile(join(path, NOTE), "utf8").catch(undefinedIfMissing),
      frozen: await readFile(join(path, FROZEN), "utf8").catch(undefinedIfMissing),
    };
  }

  async create(path: string, { note, secret }: NewContent, qemu: QemuUser | undefined): Promise<void> {
    const uid = process.getuid?.() ?? 0;
    if (qemu && uid !== 0 && qemu.uid !== uid) throw qemuUserError(qemu, "run nbdpull as root");
    await refuseParentOfOthers(path);
    const fresh = await mkdtemp(join(dirname(path), ".nbdpull-")).catch((cause: unknown) => {
      throw isMissing(cause) ? noParentError(dirname(path), cause) : cause;
    });
    try {
      await writeFile(join(fresh, NOTE), note);
      if (secret !== undefined) await writeFile(join(fresh, SECRET), secret, { mode: 0o600 });
      await mkdir(join(fresh, QEMU), { mode: 0o700 });
      if (qemu && uid === 0) {
        await chown(join(fresh, QEMU), qemu.uid, qemu.gid);
        // QEMU may enter its own folder below, but may not list this one.
        await chmod(fresh, 0o711);
      }
      await rename(fresh, path);
    } catch (error) {
      await rm(fresh, { recursive: true, force: true });
      throw error;
    }
  }

  async secret(path: string): Promise<string | undefined> {
    return await readFile(join(path, SECRET), "utf8").catch((error: unknown) => {
      if (isMissing(error) || hasCode(error, "EACCES")) return undefined;
      throw error;
    });
  }

  async renote(path: string, note: string): Promise<void> {
    const fresh = join(path, `${NOTE}.new`);
    await writeFile(fresh, note);
    await rename(fresh, join(path, NOTE));
  }

  /** Lets the processes of a group make sockets in QEMU's folder, and nobody else enter it. */
  async lend(path: string, group: number): Promise<void> {
    await chown(join(path, QEMU), process.getuid?.() ?? 0, group);
    await chmod(join(path, QEMU), 0o770);
    await chmod(path, 0o711);
  }

  async setFrozen(path: string, mark: string | undefined): Promise<void> {
    if (mark === undefined) await rm(join(path, FROZEN), { force: true });
    else await writeFile(join(path, FROZEN), mark);
  }

  runThere(domain: MarkedDomain): Promise<string> {
    return runHere(domain);
  }

  async usedBytes(path: string): Promise<number> {
    await using folder = await HeldFolder.open(join(path, QEMU)).catch(undefinedIfMissing);
    return (await folder?.usedBytes()) ?? 0;
  }

  async line(): Promise<undefined> {
    return undefined;
  }

  /** Does nothing: connections on this host end with their client. */
  async sever(): Promise<void> {}

  async remove(path: string): Promise<void> {
    const parent = await HeldFolder.open(dirname(path)).catch(undefinedIfMissing);
    await using _ = parent;
    await parent?.remove(basename(path));
  }
}

/**
 * What is in a job's folder is used by its path: libvirt gets it, and so does QEMU. Whoever could exchange
 * the folder would have root write wherever his links lead, and change the owner of what is there.
 */
async function refuseParentOfOthers(path: string): Promise<void> {
  const parent = dirname(path);
  try {
    // The name is of nothing, so this looks at who may make files in the parent, and exchange them.
    await unchangeablePath(join(parent, ".nbdpull-"), [0, process.geteuid?.() ?? 0]);
  } catch (cause) {
    if (!(cause instanceof ChangeablePath)) return;
    throw othersParentError(path, { who: cause.who, folder: cause.folder, cause });
  }
}

export function othersParentError(
  path: string,
  changed: {
    readonly who: string;
    readonly folder: string;
    /** If it is another host's. */
    readonly host?: string;
    readonly cause: unknown;
  },
): PreconditionError {
  const { folder, host, cause } = changed;
  const who = changed.who === "its group" ? `the group of ${folder}` : changed.who;
  const where = host === undefined ? "" : ` on ${host}`;
  const message = `${who} can change ${folder}${where}, and so exchange the folder for socket and scratch files below ${dirname(path)}: name another place with --scratch (default /var/tmp), or give ${folder} to root`;
  return new PreconditionError("E_SCRATCH_OWNER", message, { cause, details: { path: folder } });
}

export function qemuUserError({ uid }: QemuUser, remedy: string): PreconditionError {
  const message = `the domain's QEMU runs as user ${uid}, and only root can give that user a folder of its own for socket and scratch files: ${remedy}`;
  return new PreconditionError("E_QEMU_USER", message, { details: { uid } });
}

export function noParentError(path: string, cause: unknown): UsageError {
  const message = `${path} does not exist: name a folder with --scratch that the domain's QEMU can reach`;
  return new UsageError("E_SCRATCH_PATH", message, { cause, details: { path } });
}

function undefinedIfMissing(error: unknown): undefined {
  if (isMissing(error)) return undefined;
  throw error;
}
