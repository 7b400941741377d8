/**
 * The folder that a backup's job works in: one for each repository and domain, so that whoever comes next finds it.
 *
 *     /var/tmp/nbdpull-1a2b3c4d-f00dcafe/     (repository, domain)
 *       owner.json                            the process that works here
 *       frozen                                there while the guest's file systems may be
 *       qemu/                                 QEMU's own: the sockets, and the scratch files
 *
 * Where QEMU runs on another host that folder is there, reached by ssh, and one on this host, in the place for temporary
 * files, holds what is this process's own: libvirt's documents, and the near end of the way to the socket.
 */
import { readFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import { z } from "zod";
import { PreconditionError, UsageError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import type { Ssh } from "../host/ssh.js";
import type { QemuUser } from "../libvirt/domain-xml.js";
import { type BackupJob, exportedDisks } from "../libvirt/job-xml.js";
import { type FoundFolder, type JobPlace, LocalPlace, QEMU } from "./local-job-folder.js";
import { SshPlace } from "./ssh-job-folder.js";

/** Longer paths of sockets the kernel refuses. */
const MAX_SOCKET_PATH = 107;
const HERE = new LocalPlace();

const owner = z.object({ host: z.string(), pid: z.number().int().positive(), startedAt: z.string() });
type Owner = z.infer<typeof owner>;

/** Whose folder it is. */
export interface JobFolderKey {
  readonly repositoryId: string;
  readonly domainUuid: string;
}

export class JobFolder {
  /** On the host where QEMU runs. */
  readonly path: string;
  /** On this host: the same one, where that is QEMU's. */
  readonly here: string;
  readonly #place: JobPlace;

  private constructor(path: string, ssh: Ssh | undefined) {
    this.path = path;
    this.here = ssh === undefined ? path : join(tmpdir(), `${basename(path)}-way`);
    this.#place = ssh === undefined ? HERE : new SshPlace(ssh);
  }

  /**
   * Where the folder of this repository and domain is, whether it is there or not.
   * @param ssh to the host where QEMU runs, if that is another one
   * @throws {UsageError} `E_SCRATCH_PATH`: no absolute path on another host
   */
  static at(parent: string, key: JobFolderKey, ssh?: Ssh): JobFolder {
    if (ssh !== undefined && !isAbsolute(parent)) {
      const message = `--scratch ${parent} would be on ${ssh.target.host}: give an absolute path`;
      throw new UsageError("E_SCRATCH_PATH", message, { details: { path: parent } });
    }
    return new JobFolder(join(resolve(parent), nameOf(key)), ssh);
  }

  /** The folder that a running job works in, if that is one of this repository and domain, wherever it is. */
  static ofJob(job: BackupJob, key: JobFolderKey, ssh?: Ssh): JobFolder | undefined {
    const paths = exportedDisks(job).flatMap(({ scratch }) =>
      scratch ? [dirname(dirname(scratch.path))] : [],
    );
    const path = paths.find((each) => basename(each) === nameOf(key));
    return path === undefined ? undefined : new JobFolder(path, ssh);
  }

  get socket(): string {
    return join(this.path, QEMU, "nbd.sock");
  }

  /** Of the server that serves a disk of a domain that is off. */
  serverSocket(index: number): string {
    return join(this.path, QEMU, `${index}.sock`);
  }

  scratch(disk: string): string {
    return join(this.path, QEMU, `${disk}.scratch.qcow2`);
  }

  /** A file of this process's own. */
  file(name: string): string {
    return join(this.here, name);
  }

  /** A file of ours beside QEMU's, wherever that is. */
  fileThere(name: string): string {
    return join(this.path, name);
  }

  async isThere(): Promise<boolean> {
    return (await this.#place.look(this.path)) !== undefined;
  }

  /** To be called before the guest is frozen: whoever finds this folder will thaw it. */
  async markFrozen(): Promise<void> {
    await this.#place.setFrozen(this.path, true);
  }

  async unmarkFrozen(): Promise<void> {
    await this.#place.setFrozen(this.path, false);
  }

  async isMarkedFrozen(): Promise<boolean> {
    return (await this.#place.look(this.path))?.frozen ?? false;
  }

  /**
   * The process that works here, if it lives: its number, or where on another host it would have to be looked for.
   * @throws {PreconditionError} `E_SCRATCH_OWNER`: the folder is another user's
   */
  async livingOwner(): Promise<string | undefined> {
    const found = await this.#note();
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
    const me: Owner = { host: hostname(), pid: process.pid, startedAt: (await startOf(process.pid)) ?? "" };
    const note = `${JSON.stringify(me)}\n`;
    await this.#place.create(this.path, note, qemu);
    if (this.here !== this.path) {
      await HERE.create(this.here, note, undefined).catch(async (error: unknown) => {
        await this.#place.remove(this.path);
        throw error;
      });
    }
  }

  /** Cuts connections to QEMU that outlived their client: on another host that can be. */
  async sever(): Promise<void> {
    await this.#place.sever(this.path);
  }

  /**
   * Removes the folder, if it is there. Nothing is followed out of it: a part of it belongs to QEMU's user.
   * @throws {PreconditionError} `E_SCRATCH_OWNER`: the folder is another user's
   */
  async remove(): Promise<void> {
    if (this.here !== this.path) {
      refuseOthers(this.here, await HERE.look(this.here));
      await HERE.remove(this.here);
    }
    const found = await this.#place.look(this.path);
    refuseOthers(this.path, found);
    if (found) await this.#place.remove(this.path);
  }

  async #note(): Promise<Owner | undefined> {
    const found = await this.#place.look(this.path);
    refuseOthers(this.path, found);
    return found?.note === undefined ? undefined : parseOwner(found.note);
  }
}

/**
 * Its name can be known beforehand, and everybody may write to /var/tmp: what another user has put there is neither
 * believed nor cleared away, since links in it could lead anywhere. Once it is ours nobody else can put anything there.
 */
function refuseOthers(path: string, found: FoundFolder | undefined): void {
  if (!found || (found.isFolder && found.ours)) return;
  const what = found.isFolder ? `a folder of user ${found.uid}` : "no folder";
  const message = `${path}, where socket and scratch files would be, is ${what}, and was not made by a backup of this user: look at it and remove it, or name another place with --scratch`;
  throw new PreconditionError("E_SCRATCH_OWNER", message, { details: { path, uid: found.uid } });
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
