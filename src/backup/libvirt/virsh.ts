/**
 * Everything that the program asks of libvirt: it runs the command `virsh` and reads and writes libvirt's
 * XML. Read this file first: its class `Virsh` has a method for each command. Then read `virsh-process.ts`
 * (how a command is run) and `virsh-errors.ts` (what its failures mean). `domain-xml.ts`, `job-xml.ts` and
 * `checkpoint-xml.ts` read libvirt's documents, and `begin-xml.ts` writes those that begin a job.
 * `running-job.ts` watches over a job (`same-job.ts`, `job-info.ts`), `job-end.ts` waits for its end, and
 * `guest-end.ts` says how a guest ended. `restored-domain.ts` makes the definition of a restored domain
 * (`character-devices.ts`), of which `left-out.ts` leaves only what `definition-rules.ts` allows, and
 * `try-definition.ts` asks libvirt about it.
 * `checkpoints.ts` and `checkpoint-edit.ts` delete and mend checkpoints, `freeze.ts` freezes and thaws,
 * `fragile-disks.ts` names disks that QEMU dies of, `choose-disks.ts` picks a domain's disks, `boot-files.ts` and `capabilities-xml.ts` say what else a domain
 * needs. `start-watch.ts` hears of a domain's start.
 * `hypervisor.ts` reads connection URIs, `virsh-batch.ts` joins commands to one process, and `xml.ts`
 * on `xml-tree.ts` reads XML.
 *
 * Nothing here reads a disk's data, opens an NBD connection or opens a repository. Only the id of a
 * repository is known here, because the names of its checkpoints contain it.
 */

import { BackupError, hasCode } from "../base/errors.js";
import { together } from "../base/in-parallel.js";
import { domainWord } from "../base/shell-word.js";
import type { Platform } from "./domain-xml.js";
import { type Hypervisor, hostOf, parseHypervisor } from "./hypervisor.js";
import { JobEnd, unlessBusy } from "./job-end.js";
import { type JobInfo, parseJobInfo } from "./job-info.js";
import { isJobGone } from "./virsh-errors.js";
import { type VirshOptions, VirshProcess } from "./virsh-process.js";

export { isJobGone } from "./virsh-errors.js";
export type { VirshOptions } from "./virsh-process.js";

/**
 * A domain as virsh takes it (name, UUID or the number of its run; here the name takes precedence), or a
 * known domain. A known domain is addressed by its UUID, so that it can be renamed, and messages give its
 * name.
 */
export type DomainRef = string | { readonly uuid: string; readonly name: string };

const UUID_CHARACTERS = 36;
const NUMBER = /^\s*[-+]?\d+$/;
/** As libvirt reads one, without its hyphens and blanks. */
const UUID = /^[0-9a-f]{32}$/i;

/** Longer than a restart of libvirtd takes on a host with many domains. */
export const PATIENCE_MS = 60_000;

/**
 * Access to libvirt through its command `virsh`, which every host with libvirt has and which reaches other
 * hosts too.
 *
 * Every method rejects with
 *
 * - {@link PreconditionError}: `E_NO_VIRSH`, `E_LIBVIRT` (no answer), `E_NO_SUCH_DOMAIN`, `E_DOMAIN_OFF`,
 *   `E_NO_JOB`, `E_NO_CHECKPOINT`, `E_DOMAIN_BUSY`
 * - {@link BackupError}: `E_VIRSH_TIMEOUT`, `E_VIRSH` (anything else that libvirt refused), `E_VIRSH_OUTPUT`
 * - the signal's reason
 */
export class Virsh {
  readonly #options: VirshOptions;
  readonly #process: VirshProcess;

  constructor(options: VirshOptions = {}) {
    this.#options = options;
    this.#process = new VirshProcess(options);
  }

  /** The same libvirt with another signal or none: clean-up must run even after the work was aborted. */
  withSignal(signal: AbortSignal | undefined): Virsh {
    return new Virsh({ ...this.#options, signal });
  }

  /**
   * The same libvirt, with retries for this long while it doesn't answer. Not for commands that must not run
   * twice.
   */
  withPatience(patienceMs: number): Virsh {
    return new Virsh({ ...this.#options, patienceMs });
  }

  async domainUuid(domain: DomainRef): Promise<string> {
    const called = typeof domain === "string" ? await this.#calledLikeAnother(domain) : domain.uuid;
    // `domuuid` is the one command that doesn't take a UUID.
    return called ?? (await this.run("domuuid", domain)).trim();
  }

  async domainName(domain: DomainRef): Promise<string> {
    return (await this.run("domname", domain)).trim();
  }

  /** The number of the domain's run, a new one at every start; undefined while it is off. */
  async domainId(domain: DomainRef): Promise<number | undefined> {
    const id = (await this.run("domid", domain)).trim();
    return /^\d+$/.test(id) ? Number(id) : undefined;
  }

  /** The domain's definition: as it runs now, or with `inactive` as it will be at its next start. */
  domainXml(domain: DomainRef, options: { readonly inactive?: boolean } = {}): Promise<string> {
    return this.run("dumpxml", domain, options.inactive === true ? ["--inactive"] : []);
  }

  /**
   * The XML of the running backup job. Rejects with `E_NO_JOB` if there is none, also for a domain that is
   * off.
   */
  backupXml(domain: DomainRef): Promise<string> {
    return this.run("backup-dumpxml", domain);
  }

  /**
   * The XML of a checkpoint. With `sizes` it says how much of each disk changed since; the domain must run
   * then.
   */
  checkpointXml(
    domain: DomainRef,
    name: string,
    options: { readonly sizes?: boolean } = {},
  ): Promise<string> {
    const sizes = options.sizes === true ? ["--size"] : [];
    return this.run("checkpoint-dumpxml", domain, [`--checkpointname=${name}`, "--no-domain", ...sizes]);
  }

  /** The names of all checkpoints of the domain. */
  async checkpointNames(domain: DomainRef): Promise<string[]> {
    const output = await this.run("checkpoint-list", domain, ["--name"]);
    return output.split("\n").filter((line) => line !== "");
  }

  /**
   * Deletes a checkpoint and its bitmaps, for which the domain must run. With `metadata`, deletes only
   * libvirt's record of it.
   */
  async deleteCheckpoint(
    domain: DomainRef,
    name: string,
    options: { readonly metadata?: boolean } = {},
  ): Promise<void> {
    const metadata = options.metadata === true ? ["--metadata"] : [];
    await this.run("checkpoint-delete", domain, [`--checkpointname=${name}`, ...metadata]);
  }

  /** Begins a backup job. With `checkpointFile`, also creates that checkpoint at the same moment. */
  async beginBackup(domain: DomainRef, backupFile: string, checkpointFile?: string): Promise<void> {
    const checkpoint = checkpointFile === undefined ? [] : [`--checkpointxml=${checkpointFile}`];
    await this.run("backup-begin", domain, [`--backupxml=${backupFile}`, ...checkpoint]);
  }

  /** The size of a disk in bytes, as the guest sees it. */
  async diskSize(domain: DomainRef, target: string): Promise<number> {
    return (await this.#diskInfo(domain, target)).capacity;
  }

  /** Bytes that a disk's image occupies, at most the size of the disk. */
  async allocatedBytes(domain: DomainRef, target: string): Promise<number> {
    const { capacity, allocation } = await this.#diskInfo(domain, target);
    return Math.min(capacity, allocation);
  }

  async #diskInfo(domain: DomainRef, target: string): Promise<{ capacity: number; allocation: number }> {
    const output = await this.run("domblkinfo", domain, [`--device=${target}`]);
    const capacity = /^Capacity:\s*(\d+)$/m.exec(output)?.[1];
    const allocation = /^Allocation:\s*(\d+)$/m.exec(output)?.[1];
    // libvirt prints "-" for a disk that is empty, and may print it as the allocation of a disk on a network.
    if (/^Capacity:\s*-$/m.test(output)) return { capacity: 0, allocation: 0 };
    if (capacity !== undefined) {
      return { capacity: Number(capacity), allocation: Number(allocation ?? capacity) };
    }
    throw new BackupError(
      "E_VIRSH_OUTPUT",
      `virsh domblkinfo of ${nameOf(domain)} ${target} printed no capacity`,
    );
  }

  /**
   * The kind of the block job that runs on a disk, as virsh calls it (`Block Copy`); undefined if none runs. A
   * backup job, which is one of the domain, is no block job here.
   */
  async blockJob(domain: DomainRef, target: string): Promise<string | undefined> {
    const output = await this.run("blockjob", domain, [`--path=${target}`, "--raw"]);
    return /^\s*type=(?!Backup$)(.*)$/m.exec(output)?.[1];
  }

  /** Where a volume of a storage pool is on the hypervisor, of which kind (`file`, `block`, …), and its bytes. */
  async volume(
    pool: string,
    name: string,
  ): Promise<{ readonly path: string; readonly kind: string; readonly capacity: number | undefined }> {
    const args = [`--vol=${name}`, `--pool=${pool}`];
    const about = `${name} of the pool ${pool}`;
    const ask = (command: string, more: readonly string[]): Promise<string> =>
      this.#process.run(command, [...args, ...more], about);
    const [path, info] = await together(ask("vol-path", []), ask("vol-info", ["--bytes"]));
    const kind = /^Type:\s*(\S+)$/m.exec(info)?.[1] ?? "unknown";
    const capacity = /^Capacity:\s*(\d+)/m.exec(info)?.[1];
    return { path: path.trim(), kind, capacity: capacity === undefined ? undefined : Number(capacity) };
  }

  /** Whether the domain is off and its memory is saved for the next start. */
  async hasManagedSave(domain: DomainRef): Promise<boolean> {
    return /^Managed save:\s*yes$/m.test(await this.run("dominfo", domain));
  }

  /** The mountpoints of the guest's file systems, as its agent reports them. */
  async mountpoints(domain: DomainRef): Promise<string[]> {
    const output = await this.run("domfsinfo", domain);
    // A table under a header and a rule. The mountpoint is the first column and ends at two blanks.
    const rows = output.split("\n").filter((line) => line.trim() !== "" && !line.startsWith("---"));
    const points = rows.map((line) => line.trim().split(/\s{2,}/)[0] ?? "");
    return points.filter((point) => point !== "Mountpoint");
  }

  /** The names of all running domains, including paused ones. */
  async runningDomains(): Promise<string[]> {
    const output = await this.#process.run("list", ["--name"], "(all)");
    return output.split("\n").filter((line) => line !== "");
  }

  /** The URI of the connection, also if it is virsh's default. */
  async uri(): Promise<string> {
    return (await this.#process.run("uri", [], "")).trim();
  }

  /** Where libvirt runs. */
  async hypervisor(): Promise<Hypervisor> {
    const { connect } = this.#options;
    // A name without a scheme is an alias from libvirt's configuration.
    return parseHypervisor(connect?.includes("://") ? connect : await this.uri());
  }

  /** The host that libvirt runs on, as the URI names it; undefined for this host. */
  async remoteHost(): Promise<string | undefined> {
    return hostOf(await this.hypervisor());
  }

  /**
   * The versions of libvirt and QEMU, as `virsh version` prints them. Also tells whether libvirt answers at
   * all.
   */
  async version(): Promise<string> {
    return await this.#process.run("version", ["--daemon"], "");
  }

  /** The capabilities of the host, as XML. */
  async capabilities(): Promise<string> {
    return await this.#process.run("capabilities", [], "");
  }

  /** The capabilities of domains, as XML: for this emulator and machine, or for the host's default. */
  async domainCapabilities(platform: Platform | undefined): Promise<string> {
    const options = platform && {
      virttype: platform.type,
      emulatorbin: platform.emulator,
      arch: platform.arch,
      machine: platform.machine,
    };
    const args = Object.entries(options ?? {}).map(([name, value]) => `--${name}=${value}`);
    return await this.#process.run("domcapabilities", args, "");
  }

  /** The running job of any kind; `active` is false if there is none. */
  async jobInfo(domain: DomainRef): Promise<JobInfo> {
    return parseJobInfo(await this.run("domjobinfo", domain, ["--rawstats"]));
  }

  /**
   * How the last job ended; type `none` while a job runs, or if libvirt has no record. libvirt keeps its
   * record, since other programs may ask too.
   */
  async lastJobInfo(domain: DomainRef): Promise<JobInfo> {
    const flags = ["--completed", "--keep-completed", "--anystats", "--rawstats"];
    return parseJobInfo(await this.run("domjobinfo", domain, flags));
  }

  /**
   * The running job of any kind, and its XML if it is a backup. If none runs, `info` says that none is
   * active, and `backupXml` is undefined. If the domain is off or gone, both are undefined.
   */
  async runningJob(
    domain: DomainRef,
  ): Promise<{ readonly info: JobInfo | undefined; readonly backupXml: string | undefined }> {
    const unlessGone = <T>(answer: Promise<T>): Promise<T | undefined> =>
      answer.catch((error: unknown) => {
        if (isJobGone(error)) return undefined;
        throw error;
      });
    const [info, backupXml] = await together(
      unlessGone(this.jobInfo(domain)),
      unlessGone(this.backupXml(domain)),
    );
    return { info, backupXml };
  }

  /**
   * Ends the backup job of a domain and waits until it is gone. Resolves at once if there is none. Jobs of
   * other kinds (a migration, for instance) are left alone.
   * @param options.patience how long it may stand still, while QEMU works on it and while libvirt does
   * @param options.isKnown a backup job was just seen: it is ended before libvirt is asked again
   * @param options.onWait called once with a message, if the job takes long to end
   * @throws {BackupError} `E_JOB_STUCK`: it no longer moves; see `JobEnd`
   */
  async abortJob(
    domain: DomainRef,
    options: {
      readonly patience?: { readonly stillMs: number; readonly libvirtMs: number };
      readonly isKnown?: boolean;
      readonly onWait?: ((message: string) => void) | undefined;
    } = {},
  ): Promise<void> {
    const { patience, isKnown = false, onWait } = options;
    const name = nameOf(domain);
    const end = new JobEnd(patience, () =>
      onWait?.(
        `the backup job of ${name} was cancelled and takes long to end: it is waited for as long as it moves`,
      ),
    );
    for (let asked = isKnown && (await this.#cancelJob(domain)); ; ) {
      const job = await unlessBusy(this.runningJob(domain));
      if (job && !isBackupJob(job)) return;
      if (!asked) {
        asked = await this.#cancelJob(domain);
        // The job is usually gone once libvirt has answered.
        if (asked) continue;
      }
      if (!(await end.wait(job))) {
        const message = `the backup job of ${name} was cancelled but doesn't end: \`virsh domjobinfo ${domainWord(name)}\` shows it`;
        throw new BackupError("E_JOB_STUCK", message, { details: { domain: name } });
      }
    }
  }

  /** @returns false if libvirt was too busy to take it */
  async #cancelJob(domain: DomainRef): Promise<boolean> {
    try {
      return (await unlessBusy(this.run("domjobabort", domain))) !== undefined;
    } catch (error) {
      // The job may have ended since libvirt was asked.
      if (isJobGone(error)) return true;
      throw error;
    }
  }

  /** Whether `name` refers to a domain, running or off. */
  async hasDomain(name: string): Promise<boolean> {
    try {
      await this.domainUuid(name);
      return true;
    } catch (error) {
      if (hasCode(error, "E_NO_SUCH_DOMAIN")) return false;
      throw error;
    }
  }

  /** Defines the domain `name` from the XML file at `path`. */
  async define(name: string, path: string): Promise<void> {
    await this.#process.run("define", [`--file=${path}`], name);
  }

  /** Makes libvirt forget a domain. What belongs to it stays: disks and NVRAM. */
  async undefine(domain: DomainRef): Promise<void> {
    await this.run("undefine", domain, ["--keep-nvram"]);
  }

  /** Runs a virsh command on a domain and resolves with its output. For commands that have no method here. */
  async run(command: string, domain: DomainRef, args: readonly string[] = []): Promise<string> {
    // With the option's name in front, a domain called `--all` isn't taken for an option.
    const wanted =
      typeof domain === "string" ? ((await this.#calledLikeAnother(domain)) ?? domain) : domain.uuid;
    const named = `--domain=${wanted}`;
    return await this.#process.run(command, [named, ...args], nameOf(domain));
  }

  /**
   * virsh takes a number as that of a run, and 32 digits as a UUID, even if a domain has this name. Here the
   * name takes precedence.
   * @returns the UUID of the domain called so
   */
  async #calledLikeAnother(name: string): Promise<string | undefined> {
    if (!NUMBER.test(name) && !UUID.test(name.replaceAll(/[-\s]/g, ""))) return undefined;
    const output = await this.#process.run("list", ["--all", "--uuid", "--name"], name);
    const called = output.split("\n").find((line) => line.slice(UUID_CHARACTERS + 1) === name);
    return called?.slice(0, UUID_CHARACTERS);
  }
}

/**
 * Whether a backup job runs. It is gone only if both answers say so: its description goes first, and only then
 * can the next job begin.
 */
function isBackupJob({ info, backupXml }: Awaited<ReturnType<Virsh["runningJob"]>>): boolean {
  return info?.active ? info.operation === "backup" : backupXml !== undefined;
}

function nameOf(domain: DomainRef): string {
  return typeof domain === "string" ? domain : domain.name;
}
