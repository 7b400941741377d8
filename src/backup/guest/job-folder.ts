/**
 * The folder that a backup's job works in: one for each repository and domain, so that the next backup finds
 * it.
 *
 *     /var/tmp/nbdpull-1a2b3c4d-0123456789ab/     (repository; repository and domain)
 *       owner.json                            the process that works here
 *       secret                                of the job: what the next backup may go on with is sealed by it
 *       frozen                                exists while the guest's file systems may be frozen: which run
 *                                             of the domain it is (`frozen-mark.ts`)
 *       qemu/                                 QEMU's own: the sockets, and the scratch files
 *
 * If QEMU runs on another host, that folder is on that host and is reached by ssh. A second folder, on this
 * host among the temporary files, then holds this process's own files: libvirt's documents and the local
 * socket of the ssh forward.
 */
import { createHash, randomBytes } from "node:crypto";
import { readdir } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import { PreconditionError, UsageError } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isAlive, type ProcessIdentity, processIdentity, thisProcess } from "../host/process-identity.js";
import type { Ssh } from "../host/ssh.js";
import type { QemuUser } from "../libvirt/documents/domain-xml.js";
import { type BackupJob, exportedDisks } from "../libvirt/documents/job-xml.js";
import { trialName } from "./dead-trials.js";
import { canBeSameRun, type MarkedDomain, markOf } from "./frozen-mark.js";
import { type CutOptions, type FoundFolder, type JobPlace, LocalPlace, QEMU } from "./local-job-folder.js";
import { SshPlace } from "./ssh-job-folder.js";

/** Bytes of the longest socket path that the kernel accepts. */
const MAX_SOCKET_PATH = 107;
const SECRET_BYTES = 32;
const SECRET_TEXT = /^[0-9a-f]{64}$/;
const HERE = new LocalPlace();

/** The repository and domain that a folder belongs to. */
export interface JobFolderKey {
  readonly repositoryId: string;
  readonly domainUuid: string;
}

export class JobFolder {
  /** The folder on the host where QEMU runs. */
  readonly path: string;
  /** The folder on this host; equal to `path` if QEMU runs here. */
  readonly here: string;
  readonly #place: JobPlace;
  /** Whether this process has marked the guest. */
  #isFrozenByUs = false;
  #secret: Buffer | undefined;

  private constructor(path: string, ssh: Ssh | undefined, here = ssh === undefined ? path : wayTo(path)) {
    this.path = path;
    this.here = here;
    this.#place = ssh === undefined ? HERE : new SshPlace(ssh);
  }

  /**
   * The folder of this repository and domain below `parent`, whether it exists or not.
   * @param ssh connection to the host where QEMU runs, if that is another host
   * @throws {UsageError} `E_SCRATCH_PATH`: `parent` is on another host and not absolute
   */
  static at(parent: string, key: JobFolderKey, ssh?: Ssh): JobFolder {
    return JobFolder.#below(parent, nameOf(key), ssh);
  }

  static #below(parent: string, name: string, ssh: Ssh | undefined): JobFolder {
    if (ssh !== undefined && !isAbsolute(parent)) {
      const message = `--scratch ${parent} would be on ${ssh.target.host}: give an absolute path`;
      throw new UsageError("E_SCRATCH_PATH", message, { details: { path: parent } });
    }
    return new JobFolder(join(resolve(parent), name), ssh);
  }

  /**
   * A folder that is made only to see whether it can be: as `at`, with a name of its own, by which
   * `dead-trials.ts` knows what a killed process has left.
   */
  static trial(parent: string, ssh?: Ssh): JobFolder {
    return JobFolder.#below(parent, trialName(), ssh);
  }

  /**
   * Like `at`, but another user can't keep this one from working by making something of that name first: then
   * the name of the folder on this host gets a random end. The one that a dead backup left is found by either
   * name.
   */
  static async find(parent: string, key: JobFolderKey, ssh?: Ssh): Promise<JobFolder> {
    const usual = JobFolder.at(parent, key, ssh);
    const here = await oursOrUnused(usual.here);
    return new JobFolder(ssh === undefined ? here : usual.path, ssh, here);
  }

  /**
   * The folder that a running job works in, below any parent, if it belongs to this repository and domain.
   */
  static ofJob(job: BackupJob, key: JobFolderKey, ssh?: Ssh): JobFolder | undefined {
    const paths = exportedDisks(job).flatMap(({ scratch }) =>
      scratch ? [dirname(dirname(scratch.path))] : [],
    );
    const path = paths.find((each) => isNamed(basename(each), key));
    return path === undefined ? undefined : new JobFolder(path, ssh);
  }

  get socket(): string {
    return join(this.path, QEMU, "nbd.sock");
  }

  /** Socket of a qemu-nbd that serves an image of a domain that is off. */
  serverSocket(index: number): string {
    return join(this.path, QEMU, `${index}.sock`);
  }

  scratch(disk: string): string {
    return join(this.path, QEMU, `${disk}.scratch.qcow2`);
  }

  /** Path of a file of this process, on this host. */
  file(name: string): string {
    return join(this.here, name);
  }

  /** Path of a file of this process, on QEMU's host. */
  fileThere(name: string): string {
    return join(this.path, name);
  }

  /** @throws {UsageError} `E_SCRATCH_PATH`: the path is too long for a socket */
  assertShort(): void {
    if (Buffer.byteLength(this.socket) <= MAX_SOCKET_PATH) return;
    const message = `${this.socket} is too long for a socket's path: name a shorter folder with --scratch`;
    throw new UsageError("E_SCRATCH_PATH", message, { details: { path: this.socket } });
  }

  async isThere(): Promise<boolean> {
    return (await this.#place.look(this.path)) !== undefined;
  }

  /** Must be called before the guest is frozen, so that the next backup thaws it if this one dies. */
  async markFrozen(domain: MarkedDomain): Promise<void> {
    await this.#place.setFrozen(this.path, markOf(domain, await this.#place.runThere(domain)));
    this.#isFrozenByUs = true;
  }

  async unmarkFrozen(): Promise<void> {
    this.#isFrozenByUs = false;
    await this.#place.setFrozen(this.path, undefined);
  }

  /** Whether this run of the domain may have been left frozen. What froze a later run was somebody else. */
  async isMarkedFrozen(domain: MarkedDomain): Promise<boolean> {
    let mark: string | undefined;
    try {
      mark = (await this.#place.look(this.path))?.frozen;
    } catch (error) {
      // That host may be out of reach, and libvirt not: then what this process knows counts.
      if (this.#isFrozenByUs) return true;
      throw error;
    }
    return mark !== undefined && canBeSameRun(mark, markOf(domain, await this.#place.runThere(domain)));
  }

  /**
   * Names the process that works here, if it is alive. A process of another host always counts as alive.
   * @throws {PreconditionError} `E_SCRATCH_OWNER`: the folder is another user's
   */
  async livingOwner(): Promise<string | undefined> {
    const found = await this.#note();
    if (!found) return undefined;
    if (!(await isAlive(found))) return undefined;
    return found.host === hostname() ? `process ${found.pid}` : `process ${found.pid} on ${found.host}`;
  }

  /**
   * Makes the folder atomically, with this process as its owner.
   * @throws {PreconditionError} QEMU could not write there
   * @throws {UsageError} as `assertShort` does
   */
  async claim(qemu: QemuUser | undefined): Promise<void> {
    this.assertShort();
    this.#secret = randomBytes(SECRET_BYTES);
    const note = await noteOfThisProcess();
    await this.#place.create(this.path, { note, secret: this.#secret.toString("hex") }, qemu);
    if (this.here !== this.path) {
      await HERE.create(this.here, { note }, undefined).catch(async (error: unknown) => {
        await this.#place.remove(this.path);
        throw error;
      });
    }
  }

  /**
   * The secret of the job that works here, which outlives the process and which only this user can read.
   * Undefined: there is none, as earlier versions made none.
   */
  async secret(): Promise<Buffer | undefined> {
    if (this.#secret) return this.#secret;
    refuseOthers(this.path, await this.#place.look(this.path));
    const text = await this.#place.secret(this.path);
    return text !== undefined && SECRET_TEXT.test(text) ? Buffer.from(text, "hex") : undefined;
  }

  /** Makes this process the owner of what a dead one has left. */
  async takeOver(): Promise<void> {
    const note = await noteOfThisProcess();
    if (this.here !== this.path) {
      refuseOthers(this.here, await HERE.look(this.here));
      await HERE.remove(this.here);
      await HERE.create(this.here, { note }, undefined);
    }
    await this.#place.renote(this.path, note);
  }

  /**
   * Leaves the folder to the next run, since this process couldn't remove it: it may live on, as one that
   * uses the library does, and works here no longer.
   */
  async leave(): Promise<void> {
    if (this.here !== this.path) {
      refuseOthers(this.here, await HERE.look(this.here));
      await HERE.renote(this.here, NOBODY);
    }
    refuseOthers(this.path, await this.#place.look(this.path));
    await this.#place.renote(this.path, NOBODY);
  }

  /**
   * Lets only this process and those of a group use QEMU's folder, for the servers of a domain that is off.
   * The folder must be on this host.
   */
  async lend(group: number): Promise<void> {
    await HERE.lend(this.here, group);
  }

  /** Bytes that the scratch files occupy; 0 if there are none. */
  async usedBytes(): Promise<number> {
    const found = await this.#place.look(this.path);
    return found?.isFolder && found.ours ? await this.#place.usedBytes(this.path) : 0;
  }

  /** The line to QEMU's host that whoever works here, or did, has opened; undefined: it has ended, or none is. */
  async line(): Promise<string | undefined> {
    return await this.#place.line(this.path);
  }

  /** Cuts connections to QEMU that outlived their client, as can happen on another host. */
  async sever(options?: CutOptions): Promise<void> {
    await this.#place.sever(this.path, options);
  }

  /**
   * Removes the folder, if it exists. Does not follow links, because QEMU's user can write to a part of it.
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

  async #note(): Promise<ProcessIdentity | undefined> {
    const found = await this.#place.look(this.path);
    refuseOthers(this.path, found);
    return found?.note === undefined ? undefined : parseOwner(found.note);
  }
}

/**
 * Refuses a folder of another user. Its name is predictable and everybody may write to /var/tmp, so the
 * content of such a folder is neither trusted nor removed: links in it could lead anywhere. Only we can write
 * to our own folder.
 */
function refuseOthers(path: string, found: FoundFolder | undefined): void {
  if (!found || (found.isFolder && found.ours)) return;
  const what = found.isFolder ? `a folder of user ${found.uid}` : "no folder";
  const message = `${path}, where socket and scratch files would be, is ${what}, and was not made by a backup of this user: look at it and remove it, or name another place with --scratch`;
  throw new PreconditionError("E_SCRATCH_OWNER", message, { details: { path, uid: found.uid } });
}

function nameOf({ repositoryId, domainUuid }: JobFolderKey): string {
  // The whole of both, shortened: a socket's path has few bytes, and two UUIDs may begin alike.
  const both = createHash("sha256").update(`${repositoryId} ${domainUuid}`).digest("hex");
  return `nbdpull-${repositoryId.slice(0, 8)}-${both.slice(0, 12)}`;
}

/** The folder on this host for a job on another. */
function wayTo(path: string): string {
  return join(tmpdir(), `${basename(path)}-way`);
}

/** The path, or the same with a random end; it leads to a folder of ours, or to nothing. */
async function oursOrUnused(usual: string): Promise<string> {
  const folder = dirname(usual);
  // If there is no such parent, `claim` says so.
  const names = await readdir(folder).catch((): string[] => []);
  for (const name of names.filter((each) => isVariant(each, basename(usual))).sort()) {
    const found = await HERE.look(join(folder, name));
    if (found?.isFolder && found.ours) return join(folder, name);
  }
  return names.includes(basename(usual)) ? `${usual}-${randomBytes(4).toString("hex")}` : usual;
}

/** Whether it is the name of this repository's and domain's folder, with or without a random end. */
function isNamed(name: string, key: JobFolderKey): boolean {
  return isVariant(name, nameOf(key));
}

function isVariant(name: string, usual: string): boolean {
  return (
    name === usual || (name.startsWith(`${usual}-`) && /^[0-9a-f]{8}$/.test(name.slice(usual.length + 1)))
  );
}

async function noteOfThisProcess(): Promise<string> {
  return `${JSON.stringify(await thisProcess())}\n`;
}

/** A note that names no process. */
const NOBODY = "{}\n";

/** Undefined if the note names no process or is incomplete, for example after a power cut. */
function parseOwner(text: string): ProcessIdentity | undefined {
  return processIdentity.safeParse(parseJson(text)).data;
}
