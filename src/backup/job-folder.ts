/**
 * The folder that a backup's job works in: one for each repository and domain, so that whoever comes next finds it.
 *
 *     /var/tmp/nbdpull-1a2b3c4d-f00dcafe/     (repository, domain)
 *       owner.json                            the process that works here
 *       frozen                                there while the guest's file systems may be
 *       qemu/                                 QEMU's own: the socket, and the scratch files
 */
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
import { hostname } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { z } from "zod";
import { PreconditionError, UsageError } from "./errors.js";
import { exists, isMissing } from "./files.js";
import type { QemuUser } from "./libvirt/domain-xml.js";
import { type BackupJob, exportedDisks } from "./libvirt/job-xml.js";

/** Longer paths of sockets the kernel refuses. */
const MAX_SOCKET_PATH = 107;
const OWNER = "owner.json";
const QEMU = "qemu";
const FROZEN = "frozen";

const owner = z.object({ host: z.string(), pid: z.number().int().positive(), startedAt: z.string() });
type Owner = z.infer<typeof owner>;

/** Whose folder it is. */
export interface JobFolderKey {
  readonly repositoryId: string;
  readonly domainUuid: string;
}

export class JobFolder {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  /** Where the folder of this repository and domain is, whether it is there or not. */
  static at(parent: string, key: JobFolderKey): JobFolder {
    return new JobFolder(join(resolve(parent), nameOf(key)));
  }

  /** The folder that a running job works in, if that is one of this repository and domain, wherever it is. */
  static ofJob(job: BackupJob, key: JobFolderKey): JobFolder | undefined {
    const paths = exportedDisks(job).flatMap(({ scratch }) =>
      scratch ? [dirname(dirname(scratch.path))] : [],
    );
    const path = paths.find((each) => basename(each) === nameOf(key));
    return path === undefined ? undefined : new JobFolder(path);
  }

  get socket(): string {
    return join(this.path, QEMU, "nbd.sock");
  }

  scratch(disk: string): string {
    return join(this.path, QEMU, `${disk}.scratch.qcow2`);
  }

  file(name: string): string {
    return join(this.path, name);
  }

  /** To be called before the guest is frozen: whoever finds this folder will thaw it. */
  async markFrozen(): Promise<void> {
    await writeFile(join(this.path, FROZEN), "");
  }

  async unmarkFrozen(): Promise<void> {
    await rm(join(this.path, FROZEN), { force: true });
  }

  async isMarkedFrozen(): Promise<boolean> {
    return await exists(join(this.path, FROZEN));
  }

  /**
   * The process that works here, if it lives: its number, or where on another host it would have to be looked for.
   * @throws {PreconditionError} `E_SCRATCH_OWNER`: the folder is another user's
   */
  async livingOwner(): Promise<string | undefined> {
    await this.#refuseOthers();
    const found = await this.#owner();
    if (!found) return undefined;
    if (found.host !== hostname()) return `process ${found.pid} on ${found.host}`;
    return (await startOf(found.pid)) === found.startedAt ? `process ${found.pid}` : undefined;
  }

  /**
   * Makes the folder, with this process as its owner, in one step: it is never seen without.
   * @throws {PreconditionError} QEMU could not write there
   * @throws {UsageError} its path is too long for a socket
   */
  async claim(qemu: QemuUser | undefined): Promise<void> {
    if (Buffer.byteLength(this.socket) > MAX_SOCKET_PATH) {
      const message = `${this.socket} is too long for a socket's path: name a shorter folder with --scratch`;
      throw new UsageError("E_SCRATCH_PATH", message, { details: { path: this.socket } });
    }
    const uid = process.getuid?.() ?? 0;
    if (qemu && uid !== 0 && qemu.uid !== uid) {
      const message = `the domain's QEMU runs as user ${qemu.uid}, and only root can give that user a folder of its own for socket and scratch files: run nbdpull as root`;
      throw new PreconditionError("E_QEMU_USER", message, { details: { uid: qemu.uid } });
    }
    const fresh = await mkdtemp(join(dirname(this.path), ".nbdpull-")).catch((cause: unknown) => {
      if (!isMissing(cause)) throw cause;
      const message = `${dirname(this.path)} is not there: name a folder with --scratch that the domain's QEMU can reach`;
      throw new UsageError("E_SCRATCH_PATH", message, { cause, details: { path: dirname(this.path) } });
    });
    try {
      const me: Owner = { host: hostname(), pid: process.pid, startedAt: (await startOf(process.pid)) ?? "" };
      await writeFile(join(fresh, OWNER), `${JSON.stringify(me)}\n`);
      await mkdir(join(fresh, QEMU), { mode: 0o700 });
      if (qemu && uid === 0) {
        await chown(join(fresh, QEMU), qemu.uid, qemu.gid);
        // QEMU passes through to its own folder, and reads nothing of ours on the way.
        await chmod(fresh, 0o711);
      }
      await rename(fresh, this.path);
    } catch (error) {
      await rm(fresh, { recursive: true, force: true });
      throw error;
    }
  }

  /**
   * Removes the folder, if it is there. Nothing is followed out of it: a part of it belongs to QEMU's user.
   * @throws {PreconditionError} `E_SCRATCH_OWNER`: the folder is another user's
   */
  async remove(): Promise<void> {
    await this.#refuseOthers();
    for (const folder of [join(this.path, QEMU), this.path]) {
      const entries = await readdir(folder, { withFileTypes: true }).catch(noneIfMissing);
      for (const entry of entries) if (!entry.isDirectory()) await unlink(join(folder, entry.name));
      await rmdir(folder).catch(noneIfMissing);
    }
  }

  /**
   * Its name can be known beforehand, and everybody may write to /var/tmp: what another user has put there is neither
   * believed nor cleared away, since links in it could lead anywhere. Once it is ours nobody else can put anything there.
   */
  async #refuseOthers(): Promise<void> {
    const found = await lstat(this.path).catch((error: unknown) => {
      if (isMissing(error)) return undefined;
      throw error;
    });
    if (!found) return;
    const mayBeOurs = [0, process.getuid?.()].includes(found.uid);
    if (found.isDirectory() && mayBeOurs) return;
    const what = found.isDirectory() ? `a folder of user ${found.uid}` : "no folder";
    const message = `${this.path}, where socket and scratch files would be, is ${what}, and was not made by a backup of this user: look at it and remove it, or name another place with --scratch`;
    throw new PreconditionError("E_SCRATCH_OWNER", message, { details: { path: this.path, uid: found.uid } });
  }

  async #owner(): Promise<Owner | undefined> {
    const text = await readFile(join(this.path, OWNER), "utf8").catch((error: unknown) => {
      if (isMissing(error)) return undefined;
      throw error;
    });
    return text === undefined ? undefined : parseOwner(text);
  }
}

function nameOf({ repositoryId, domainUuid }: JobFolderKey): string {
  return `nbdpull-${repositoryId.slice(0, 8)}-${domainUuid.slice(0, 8)}`;
}

/** One that a power cut left half written is nobody's. */
function parseOwner(text: string): Owner | undefined {
  try {
    return owner.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}

/**
 * What tells a process from a later one of the same number: the boot, and its start since then. Undefined where there is
 * no such process.
 */
async function startOf(pid: number): Promise<string | undefined> {
  try {
    const boot = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
    const stat = await readFile(`/proc/${pid}/stat`, "utf8");
    // The name in parentheses may hold blanks; the start is the 22nd field, so the 20th after it.
    return `${boot} ${stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]}`;
  } catch (error) {
    if (isMissing(error) || (error as NodeJS.ErrnoException).code === "ESRCH") return undefined;
    throw error;
  }
}

function noneIfMissing(error: unknown): [] {
  if (isMissing(error)) return [];
  throw error;
}
