/**
 * Everything that the program asks of libvirt: one connection to its daemon, by its own protocol, and its XML
 * read and written. Read this file first: its class `Libvirt` has a method for each question, and they stand
 * in the order of their subjects: the connection, the host, a domain, its disks, the agent of its guest, its
 * checkpoints, its jobs. Below it `libvirt-calls.ts` finds domains and has patience, and `libvirt-errors.ts`
 * says what libvirt's errors mean. The folders:
 *
 *     rpc         the protocol: connection.ts carries calls, procedures.ts has one entry for each
 *     documents   libvirt's XML, read and written, each file one kind of document
 *     job         a backup job that runs, watched until it ends
 *
 * The other files ask several questions for one purpose, and each is named after that.
 *
 * Nothing here reads a disk's data, opens an NBD connection or opens a repository. Only the id of a
 * repository is known here, because the names of its checkpoints contain it.
 */

import { hasCode } from "../base/errors.js";
import type { Platform } from "./documents/domain-xml.js";
import { stateText } from "./domain-state.js";
import { type Hypervisor, hostOf } from "./hypervisor.js";
import { endJob } from "./job-end.js";
import { type JobInfo, jobInfoOf } from "./job-info.js";
import { type DomainRef, LibvirtCalls, type LibvirtOptions, nameOf, PATIENCE_MS } from "./libvirt-calls.js";
import { errorNumberOf, unlessGone } from "./libvirt-errors.js";
import { NUMBER } from "./rpc/errors.js";
import * as flag from "./rpc/flags.js";
import * as remote from "./rpc/procedures.js";

export { type DomainRef, type LibvirtOptions, PATIENCE_MS } from "./libvirt-calls.js";
export { isJobGone } from "./libvirt-errors.js";

/**
 * Access to a libvirt, on this host or another, over one connection by its own protocol. The connection is
 * made with the first question, and again after it was lost. It does not keep the process from ending;
 * `close` ends it at once.
 *
 * Every method rejects with
 *
 * - {@link PreconditionError}: `E_LIBVIRT` (no answer), `E_LIBVIRT_ACCESS`, `E_LIBVIRT_OWNER`,
 *   `E_LIBVIRT_SASL`, `E_LIBVIRT_TLS`, `E_NO_SSH`, `E_NO_SUCH_DOMAIN`, `E_DOMAIN_OFF`, `E_NO_JOB`,
 *   `E_NO_CHECKPOINT`, `E_DOMAIN_BUSY`, `E_NO_AGENT`, `E_GUEST_FROZEN`, `E_NO_CERTIFICATES`
 * - {@link UsageError}: `E_LIBVIRT_URI`
 * - {@link BackupError}: `E_LIBVIRT_TIMEOUT`, `E_LIBVIRT_REFUSED` (anything else that libvirt refused),
 *   `E_LIBVIRT_ANSWER` (an answer that makes no sense)
 * - the signal's reason
 */
export class Libvirt implements AsyncDisposable {
  /** `withSignal` and `withPatience` replace it by one over the same connection. */
  #calls: LibvirtCalls;

  constructor(options: LibvirtOptions = {}) {
    this.#calls = new LibvirtCalls(options);
  }

  /** @internal For questions that only one purpose has: the rest of this room, and other rooms, ask so. */
  get calls(): LibvirtCalls {
    return this.#calls;
  }

  /** The same connection with another signal or none: clean-up must run even after the work was aborted. */
  withSignal(signal: AbortSignal | undefined): Libvirt {
    return this.#with({ signal });
  }

  /**
   * The same connection, with retries for this long while libvirt doesn't answer. Not for what must not be
   * done twice.
   */
  withPatience(patienceMs: number): Libvirt {
    return this.#with({ patienceMs });
  }

  #with(options: LibvirtOptions): Libvirt {
    const other = new Libvirt();
    other.#calls = this.#calls.with(options);
    return other;
  }

  /** Ends the connection, for all that share it. */
  async close(): Promise<void> {
    await this.#calls.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** The URI of the connection, also if none was named. */
  async uri(): Promise<string> {
    return await this.#calls.uri();
  }

  /** Where libvirt runs. */
  async hypervisor(): Promise<Hypervisor> {
    return await this.#calls.hypervisor();
  }

  /** The host that libvirt runs on, as the URI names it; undefined for this host. */
  async remoteHost(): Promise<string | undefined> {
    return hostOf(await this.hypervisor());
  }

  /**
   * Versions of libvirt and of the hypervisor, as in 9.0.0. Also tells whether libvirt answers at all.
   * libvirt may try its hypervisor for the answer, which takes seconds.
   */
  async versions(): Promise<{ readonly libvirt: string; readonly hypervisor: string }> {
    const libvirt = await this.version();
    const hypervisor = await this.#calls.call(remote.CONNECT_GET_VERSION, undefined, "");
    return { libvirt, hypervisor: versionText(hypervisor) };
  }

  /** The version of libvirt, which it tells at once. */
  async version(): Promise<string> {
    return versionText(await this.#calls.call(remote.CONNECT_GET_LIB_VERSION, undefined, ""));
  }

  /** The capabilities of the host, as XML. */
  capabilities(): Promise<string> {
    return this.#calls.call(remote.CONNECT_GET_CAPABILITIES, undefined, "");
  }

  /** The capabilities of domains, as XML: for this emulator and machine, or for the host's default. */
  domainCapabilities(
    platform: Readonly<Partial<Record<keyof Platform, string | undefined>>> | undefined,
  ): Promise<string> {
    return this.#calls.call(remote.CONNECT_GET_DOMAIN_CAPABILITIES, platform ?? {}, "");
  }

  /** Whether a network of libvirt's is on; undefined: there is none of that name. */
  async network(name: string): Promise<"on" | "off" | undefined> {
    try {
      const found = await this.#calls.call(remote.NETWORK_LOOKUP_BY_NAME, name, name);
      return (await this.#calls.call(remote.NETWORK_IS_ACTIVE, found, name)) ? "on" : "off";
    } catch (error) {
      if (errorNumberOf(error) === NUMBER.noNetwork) return undefined;
      throw error;
    }
  }

  /**
   * Where a volume of a storage pool is on the hypervisor, of which kind (`file`, `block`, …), and its bytes.
   */
  async volume(
    pool: string,
    name: string,
  ): Promise<{ readonly path: string; readonly kind: string; readonly capacity: number | undefined }> {
    const about = `${name} of the pool ${pool}`;
    const found = await this.#calls.call(remote.STORAGE_POOL_LOOKUP_BY_NAME, pool, about);
    const volume = await this.#calls.call(remote.STORAGE_VOL_LOOKUP_BY_NAME, { pool: found, name }, about);
    const path = await this.#calls.call(remote.STORAGE_VOL_GET_PATH, volume, about);
    const { type, capacity } = await this.#calls.call(remote.STORAGE_VOL_GET_INFO, volume, about);
    return { path, kind: flag.VOLUME_KINDS[type] ?? "unknown", capacity };
  }

  /** The names of all running domains, including paused ones, in the order in which they were started. */
  async runningDomains(): Promise<string[]> {
    const domains = await this.#calls.call(remote.CONNECT_LIST_ALL_DOMAINS, flag.LIST_DOMAINS.active, "");
    return domains.toSorted((a, b) => a.id - b.id).map(({ name }) => name);
  }

  /** All domains that are off. */
  async stoppedDomains(): Promise<{ readonly name: string; readonly uuid: string }[]> {
    return await this.#calls.call(remote.CONNECT_LIST_ALL_DOMAINS, flag.LIST_DOMAINS.inactive, "");
  }

  async domainUuid(domain: DomainRef): Promise<string> {
    return (await this.#calls.find(domain)).uuid;
  }

  async domainName(domain: DomainRef): Promise<string> {
    return (await this.#calls.lookUp(domain)).name;
  }

  /** The number of the domain's run, a new one at every start; undefined while it is off. */
  async domainId(domain: DomainRef): Promise<number | undefined> {
    const { id } = await this.#calls.lookUp(domain);
    return id >= 0 ? id : undefined;
  }

  /** The domain's state as virsh names it: running, paused, shut off; with its reason: shut off (crashed). */
  async domainState(domain: DomainRef, options: { readonly reason?: boolean } = {}): Promise<string> {
    return stateText(await this.#calls.ask(remote.DOMAIN_GET_STATE, domain, {}), options.reason === true);
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

  /** Whether the domain is off and its memory is saved for the next start. */
  hasManagedSave(domain: DomainRef): Promise<boolean> {
    return this.#calls.ask(remote.DOMAIN_HAS_MANAGED_SAVE_IMAGE, domain, {});
  }

  /** The domain's definition: as it runs now, or with `inactive` as it will be at its next start. */
  domainXml(domain: DomainRef, options: { readonly inactive?: boolean } = {}): Promise<string> {
    return this.#calls.ask(remote.DOMAIN_GET_XML_DESC, domain, {
      flags: options.inactive === true ? flag.DOMAIN_XML.inactive : 0,
    });
  }

  /** Defines the domain `name` from its XML. */
  async define(name: string, xml: string): Promise<void> {
    await this.#calls.call(remote.DOMAIN_DEFINE_XML_FLAGS, xml, name);
  }

  /** Makes libvirt forget a domain. What belongs to it stays: disks and NVRAM. */
  async undefine(domain: DomainRef): Promise<void> {
    await this.#calls.ask(remote.DOMAIN_UNDEFINE_FLAGS, domain, { flags: flag.UNDEFINE.keepNvram });
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

  /** Zeroes for a disk that is empty, or of which libvirt knows nothing. */
  #diskInfo(domain: DomainRef, target: string): Promise<{ capacity: number; allocation: number }> {
    return this.#calls.ask(remote.DOMAIN_GET_BLOCK_INFO, domain, { path: target });
  }

  /**
   * The kind of the block job that runs on a disk, as virsh calls it (`Block Copy`); undefined if none runs.
   * A backup job, which is one of the domain, is no block job here.
   */
  async blockJob(domain: DomainRef, target: string): Promise<string | undefined> {
    const { type } =
      (await this.#calls.ask(remote.DOMAIN_GET_BLOCK_JOB_INFO, domain, { path: target })) ?? {};
    return type === undefined || type === flag.BACKUP_JOB
      ? undefined
      : (flag.BLOCK_JOBS[type] ?? "Unknown job");
  }

  /** The mountpoints of the guest's file systems, as its agent reports them. */
  mountpoints(domain: DomainRef): Promise<string[]> {
    return this.#calls.ask(remote.DOMAIN_GET_FSINFO, domain, {});
  }

  /**
   * Has the guest's agent flush and freeze file systems; no mountpoints: all.
   * @returns how many were frozen
   */
  freeze(domain: DomainRef, mountpoints: readonly string[]): Promise<number> {
    return this.#calls.ask(remote.DOMAIN_FSFREEZE, domain, { mountpoints });
  }

  /** Has the guest's agent thaw all file systems. */
  async thaw(domain: DomainRef): Promise<void> {
    await this.#calls.ask(remote.DOMAIN_FSTHAW, domain, { mountpoints: [] });
  }

  /**
   * The XML of a checkpoint, without the domain's definition unless `whole`. With `sizes` it says how much of
   * each disk changed since; the domain must run then.
   */
  async checkpointXml(
    domain: DomainRef,
    name: string,
    options: { readonly sizes?: boolean; readonly whole?: boolean } = {},
  ): Promise<string> {
    const flags =
      (options.sizes === true ? flag.CHECKPOINT_XML.size : 0) |
      (options.whole === true ? 0 : flag.CHECKPOINT_XML.noDomain);
    const checkpoint = { name, domain: await this.#calls.find(domain) };
    return await this.#calls.call(
      remote.DOMAIN_CHECKPOINT_GET_XML_DESC,
      { checkpoint, flags },
      nameOf(domain),
    );
  }

  /** The names of all checkpoints of the domain, a parent before its children. */
  async checkpointNames(domain: DomainRef): Promise<string[]> {
    const checkpoints = await this.#calls.ask(remote.DOMAIN_LIST_ALL_CHECKPOINTS, domain, {
      flags: flag.CHECKPOINT_LIST.topological,
    });
    return checkpoints.map(({ name }) => name);
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
    const flags = options.metadata === true ? flag.CHECKPOINT_DELETE.metadataOnly : 0;
    const checkpoint = { name, domain: await this.#calls.find(domain) };
    await this.#calls.call(remote.DOMAIN_CHECKPOINT_DELETE, { checkpoint, flags }, nameOf(domain));
  }

  /** Records a checkpoint that libvirt has forgotten: its bitmaps are not made, they have to be there. */
  async redefineCheckpoint(domain: DomainRef, xml: string): Promise<void> {
    await this.#calls.ask(remote.DOMAIN_CHECKPOINT_CREATE_XML, domain, {
      xml,
      flags: flag.CHECKPOINT_CREATE.redefine,
    });
  }

  /** Begins a backup job. With `checkpointXml`, also creates that checkpoint at the same moment. */
  async beginBackup(domain: DomainRef, backupXml: string, checkpointXml?: string): Promise<void> {
    await this.#calls.ask(remote.DOMAIN_BACKUP_BEGIN, domain, { backupXml, checkpointXml });
  }

  /**
   * The XML of the running backup job. Rejects with `E_NO_JOB` if there is none, also for a domain that is
   * off.
   */
  backupXml(domain: DomainRef): Promise<string> {
    return this.#calls.ask(remote.DOMAIN_BACKUP_GET_XML_DESC, domain, {});
  }

  /** The running job of any kind; `active` is false if there is none. */
  async jobInfo(domain: DomainRef): Promise<JobInfo> {
    const { type, params } = await this.#calls.ask(remote.DOMAIN_GET_JOB_STATS, domain, { flags: 0 });
    return jobInfoOf(type, params);
  }

  /**
   * How the last job ended; type `none` while a job runs, or if libvirt has no record. libvirt keeps its
   * record, since other programs may ask too.
   */
  async lastJobInfo(domain: DomainRef): Promise<JobInfo> {
    const { type, params } = await this.#calls.ask(remote.DOMAIN_GET_JOB_STATS, domain, {
      flags: flag.JOB_STATS.completed | flag.JOB_STATS.keepCompleted,
    });
    return jobInfoOf(type, params);
  }

  /**
   * The running job of any kind, and its XML if it is a backup. If none runs, `info` says that none is
   * active, and `backupXml` is undefined. If the domain is off or gone, both are undefined.
   */
  async runningJob(
    domain: DomainRef,
  ): Promise<{ readonly info: JobInfo | undefined; readonly backupXml: string | undefined }> {
    // One after the other: libvirt may answer questions that are under way together in any order.
    const info = await unlessGone(this.jobInfo(domain));
    return { info, backupXml: await unlessGone(this.backupXml(domain)) };
  }

  /**
   * Ends the backup job of a domain and waits until it is gone. Resolves at once if there is none. Jobs of
   * other kinds (a migration, for instance) are left alone, and so is one that begins after ours has ended.
   * libvirt cancels whatever job runs: one that takes the place of ours between the last look and the
   * cancelling, some milliseconds (or 30 s, if libvirt is busy with the domain), is cancelled for it.
   *
   * @param options.patience how long it may stand still, while QEMU works on it (`stillMs`) and while libvirt
   *   does (`libvirtMs`), and how long libvirt may be away (`awayMs`; default: its own patience, or 60 s)
   * @param options.isKnown the job was just seen: it is cancelled before libvirt is asked again
   * @param options.isOurs tells the job, by its XML, from one that another program began after it; throws or
   *   returns false for that. Default: any is meant
   * @param options.onCancelled called when libvirt has taken the cancelling, or seems to: where its answer is
   *   lost, and libvirt has said for a minute that its thread for QEMU's events holds the domain. The signal is
   *   aborted if libvirt says something else later; it may then be called again
   * @param options.onWait called once with a message, if it takes long (`tellMs`, default 10 s)
   * @throws {BackupError} `E_JOB_STUCK`: it no longer moves
   */
  async abortJob(
    domain: DomainRef,
    options: {
      readonly patience?: Partial<Record<"stillMs" | "libvirtMs" | "awayMs" | "tellMs", number>>;
      readonly isKnown?: boolean;
      readonly isOurs?: ((backupXml: string) => boolean) | undefined;
      readonly onCancelled?: ((doubted: AbortSignal) => void) | undefined;
      readonly onWait?: ((message: string) => void) | undefined;
    } = {},
  ): Promise<void> {
    // Found before: between a look and the cancelling, nothing else is asked.
    const known = await unlessGone(this.#calls.find(domain));
    if (known === undefined) return;
    // Without patience: if it isn't answered, or not even sent, it is looked again whose job runs then.
    const now = this.withPatience(0);
    const cancel = (sending: { readonly sendBefore: number; readonly onSent: () => void }) =>
      now.calls.ask(remote.DOMAIN_ABORT_JOB, known, {}, { again: false, ...sending });
    const patience = { awayMs: this.#calls.patienceMs ?? PATIENCE_MS, ...options.patience };
    await endJob({ name: known.name, look: () => now.runningJob(known), cancel }, { ...options, patience });
  }
}

/** libvirt counts a version as major * 1,000,000 + minor * 1000 + release. */
function versionText(version: number): string {
  return [version / 1e6, (version / 1000) % 1000, version % 1000].map(Math.floor).join(".");
}
