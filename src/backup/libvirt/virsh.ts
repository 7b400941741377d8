import { setTimeout as sleep } from "node:timers/promises";
import { BackupError } from "../base/errors.js";
import { together } from "../base/together.js";
import type { Platform } from "./domain-xml.js";
import { type Hypervisor, hostOf, parseHypervisor } from "./hypervisor.js";
import { type JobInfo, parseJobInfo } from "./job-info.js";
import { isErrorOf, isJobGone } from "./virsh-errors.js";
import { type VirshOptions, VirshProcess } from "./virsh-process.js";

export { isErrorOf, isJobGone } from "./virsh-errors.js";
export type { VirshOptions } from "./virsh-process.js";

/**
 * A domain as virsh takes it (its name, its UUID or the number of its run; here the name comes first), or one that is known: asked for by its UUID,
 * so that a renamed domain stays itself, and called by its name in messages.
 */
export type DomainRef = string | { readonly uuid: string; readonly name: string };

const UUID_CHARACTERS = 36;

/** How often a job is asked after while it ends. */
const POLL_MS = 100;
/** Longer than a restart of libvirtd takes on a host with many domains. */
export const PATIENCE_MS = 60_000;

/**
 * libvirt through its command `virsh`, which every host with libvirt has and which reaches other hosts as well.
 *
 * Every method rejects with
 *
 * - {@link PreconditionError}: `E_NO_VIRSH`, `E_LIBVIRT` (no answer), `E_NO_SUCH_DOMAIN`, `E_DOMAIN_OFF`, `E_NO_JOB`,
 *   `E_NO_CHECKPOINT`, `E_DOMAIN_BUSY`
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

  /** The same libvirt, under another signal or none: a clean-up must run although the work was aborted. */
  withSignal(signal: AbortSignal | undefined): Virsh {
    return new Virsh({ ...this.#options, signal });
  }

  /** The same libvirt, asked again for so long where it doesn't answer. Not for what must not be done twice. */
  withPatience(patienceMs: number): Virsh {
    return new Virsh({ ...this.#options, patienceMs });
  }

  async domainUuid(domain: DomainRef): Promise<string> {
    const called = typeof domain === "string" ? await this.#calledByNumber(domain) : domain.uuid;
    // The one command that doesn't take a UUID.
    return called ?? (await this.run("domuuid", domain)).trim();
  }

  async domainName(domain: DomainRef): Promise<string> {
    return (await this.run("domname", domain)).trim();
  }

  /** The number of the domain's run: another one after every start. Undefined while it is off. */
  async domainId(domain: DomainRef): Promise<number | undefined> {
    const id = (await this.run("domid", domain)).trim();
    return /^\d+$/.test(id) ? Number(id) : undefined;
  }

  /** The domain's definition: as it runs now, or with `inactive` as it will be at its next start. */
  domainXml(domain: DomainRef, options: { readonly inactive?: boolean } = {}): Promise<string> {
    return this.run("dumpxml", domain, options.inactive === true ? ["--inactive"] : []);
  }

  /** The XML of the backup job that runs: `E_NO_JOB` without one, also for a domain that is off. */
  backupXml(domain: DomainRef): Promise<string> {
    return this.run("backup-dumpxml", domain);
  }

  /** With `sizes` also how much each disk was changed since, for which the domain has to run. */
  checkpointXml(
    domain: DomainRef,
    name: string,
    options: { readonly sizes?: boolean } = {},
  ): Promise<string> {
    const sizes = options.sizes === true ? ["--size"] : [];
    return this.run("checkpoint-dumpxml", domain, [`--checkpointname=${name}`, "--no-domain", ...sizes]);
  }

  /** The names of all its checkpoints. */
  async checkpointNames(domain: DomainRef): Promise<string[]> {
    const output = await this.run("checkpoint-list", domain, ["--name"]);
    return output.split("\n").filter((line) => line !== "");
  }

  /** Deletes a checkpoint and its bitmaps, for which the domain has to run; or with `metadata` only libvirt's record of it. */
  async deleteCheckpoint(
    domain: DomainRef,
    name: string,
    options: { readonly metadata?: boolean } = {},
  ): Promise<void> {
    const metadata = options.metadata === true ? ["--metadata"] : [];
    await this.run("checkpoint-delete", domain, [`--checkpointname=${name}`, ...metadata]);
  }

  /** Begins a backup job, and with `checkpointFile` creates that checkpoint at the same moment. */
  async beginBackup(domain: DomainRef, backupFile: string, checkpointFile?: string): Promise<void> {
    const checkpoint = checkpointFile === undefined ? [] : [`--checkpointxml=${checkpointFile}`];
    await this.run("backup-begin", domain, [`--backupxml=${backupFile}`, ...checkpoint]);
  }

  /** The size in bytes that the guest sees of a disk. */
  async diskSize(domain: DomainRef, target: string): Promise<number> {
    return (await this.#diskInfo(domain, target)).capacity;
  }

  /** The bytes that a disk's image takes, never more than the disk has. */
  async allocatedBytes(domain: DomainRef, target: string): Promise<number> {
    const { capacity, allocation } = await this.#diskInfo(domain, target);
    return Math.min(capacity, allocation);
  }

  async #diskInfo(domain: DomainRef, target: string): Promise<{ capacity: number; allocation: number }> {
    const output = await this.run("domblkinfo", domain, [`--device=${target}`]);
    const capacity = /^Capacity:\s*(\d+)$/m.exec(output)?.[1];
    const allocation = /^Allocation:\s*(\d+)$/m.exec(output)?.[1];
    // Of a disk on a network libvirt may print "-" for it.
    if (capacity !== undefined) {
      return { capacity: Number(capacity), allocation: Number(allocation ?? capacity) };
    }
    throw new BackupError(
      "E_VIRSH_OUTPUT",
      `virsh domblkinfo of ${nameOf(domain)} ${target} printed no capacity`,
    );
  }

  /** Whether the domain is off, but with its memory saved for the next start. */
  async hasManagedSave(domain: DomainRef): Promise<boolean> {
    return /^Managed save:\s*yes$/m.test(await this.run("dominfo", domain));
  }

  /** The mountpoints of the guest's file systems, as its agent tells them. */
  async mountpoints(domain: DomainRef): Promise<string[]> {
    const output = await this.run("domfsinfo", domain);
    // A table under a head and a rule; the mountpoint comes first, and with two blanks after it.
    const rows = output.split("\n").filter((line) => line.trim() !== "" && !line.startsWith("---"));
    const points = rows.map((line) => line.trim().split(/\s{2,}/)[0] ?? "");
    return points.filter((point) => point !== "Mountpoint");
  }

  /** The names of all domains that run, paused ones among them. */
  async runningDomains(): Promise<string[]> {
    const output = await this.#process.run("list", ["--name"], "(all)");
    return output.split("\n").filter((line) => line !== "");
  }

  /** The URI of the libvirt that is talked to, also where it is virsh's default. */
  async uri(): Promise<string> {
    return (await this.#process.run("uri", [], "")).trim();
  }

  /** Where it runs. */
  async hypervisor(): Promise<Hypervisor> {
    const { connect } = this.#options;
    // Without a scheme it is an alias of libvirt's configuration.
    return parseHypervisor(connect?.includes("://") ? connect : await this.uri());
  }

  /** The host that it runs on, as its URI names it; undefined where that is this one. */
  async remoteHost(): Promise<string | undefined> {
    return hostOf(await this.hypervisor());
  }

  /** The versions of libvirt and QEMU, as `virsh version` prints them. Also tells whether libvirt answers at all. */
  async version(): Promise<string> {
    return await this.#process.run("version", ["--daemon"], "");
  }

  /** What the host can do, as XML. */
  async capabilities(): Promise<string> {
    return await this.#process.run("capabilities", [], "");
  }

  /** What domains can do, as XML: those of this emulator and machine, or of the host's first choice. */
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

  /** The job that runs now, of whatever kind; `active` is false without one. */
  async jobInfo(domain: DomainRef): Promise<JobInfo> {
    return parseJobInfo(await this.run("domjobinfo", domain, ["--rawstats"]));
  }

  /**
   * How the last job ended; type `none` while one runs, or where libvirt doesn't remember. It goes on remembering:
   * others may want to ask as well.
   */
  async lastJobInfo(domain: DomainRef): Promise<JobInfo> {
    const flags = ["--completed", "--keep-completed", "--anystats", "--rawstats"];
    return parseJobInfo(await this.run("domjobinfo", domain, flags));
  }

  /**
   * The job that runs, of whatever kind, and the XML of it where it is a backup. Both are undefined where there is none, and where the domain is off.
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
   * Ends the backup job of a domain and waits until it is gone; resolves at once without one. Jobs of other kinds (a
   * migration, say) are left alone.
   * @param options.isKnown a backup job was just seen: it is not looked for again before it is ended
   * @throws {BackupError} `E_JOB_STUCK`: it was still there after `timeoutMs` (default 60 s)
   */
  async abortJob(
    domain: DomainRef,
    options: { readonly timeoutMs?: number; readonly isKnown?: boolean } = {},
  ): Promise<void> {
    const { timeoutMs = 60_000, isKnown = false } = options;
    const deadline = performance.now() + timeoutMs;
    if (isKnown) await this.#cancelJob(domain);
    for (let asked = isKnown; await this.#hasBackupJob(domain); asked = true) {
      if (performance.now() > deadline) {
        const name = nameOf(domain);
        const message = `the backup job of ${name} was cancelled but doesn't end: \`virsh domjobinfo ${name}\` shows it`;
        throw new BackupError("E_JOB_STUCK", message, { details: { domain: name } });
      }
      // Mostly it is gone once libvirt has answered.
      if (asked) await sleep(POLL_MS);
      else await this.#cancelJob(domain);
    }
  }

  /** Both must say so: the job's description goes first, and only then can the next job begin. */
  async #hasBackupJob(domain: DomainRef): Promise<boolean> {
    const { info, backupXml } = await this.runningJob(domain);
    return info?.active ? info.operation === "backup" : backupXml !== undefined;
  }

  async #cancelJob(domain: DomainRef): Promise<void> {
    try {
      await this.run("domjobabort", domain);
    } catch (error) {
      // It may have ended between the question and the order.
      if (!isJobGone(error)) throw error;
    }
  }

  /** Whether there is a domain that `name` means, be it running or off. */
  async hasDomain(name: string): Promise<boolean> {
    try {
      await this.domainUuid(name);
      return true;
    } catch (error) {
      if (isErrorOf(error, "E_NO_SUCH_DOMAIN")) return false;
      throw error;
    }
  }

  /** Defines the domain `name` by the file at `path`. */
  async define(name: string, path: string): Promise<void> {
    await this.#process.run("define", [`--file=${path}`], name);
  }

  /** Runs one command of virsh on a domain; resolves with what it printed. For everything that has no method here. */
  async run(command: string, domain: DomainRef, args: readonly string[] = []): Promise<string> {
    // With the option's name before it a domain called `--all` is no option.
    const wanted =
      typeof domain === "string" ? ((await this.#calledByNumber(domain)) ?? domain) : domain.uuid;
    const named = `--domain=${wanted}`;
    return await this.#process.run(command, [named, ...args], nameOf(domain));
  }

  /**
   * virsh takes a number for that of a run, though another domain is called so: here the name comes first.
   * @returns its UUID
   */
  async #calledByNumber(name: string): Promise<string | undefined> {
    if (!/^\s*[-+]?\d+$/.test(name)) return undefined;
    const output = await this.#process.run("list", ["--all", "--uuid", "--name"], name);
    const called = output.split("\n").find((line) => line.slice(UUID_CHARACTERS + 1) === name);
    return called?.slice(0, UUID_CHARACTERS);
  }
}

function nameOf(domain: DomainRef): string {
  return typeof domain === "string" ? domain : domain.name;
}
