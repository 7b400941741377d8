import { isDeepStrictEqual } from "node:util";
import type { ReconnectOptions } from "../../nbd/index.js";
import {
  type BackupError,
  DamageError,
  hasCode,
  messageOf,
  PreconditionError,
  UsageError,
} from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import { proveChain } from "../chain/chain.js";
import { type EncryptedPolicy, judgeEncrypted } from "../guest/encrypted-disks.js";
import { JobClients } from "../guest/job-clients.js";
import {
  connectJobAnywhere,
  directConnection,
  type JobConnection,
  patientBy,
} from "../guest/job-connection.js";
import type { Definition } from "../guest/keep-files.js";
import { type ScratchGuardOptions, whileScratchLasts } from "../guest/scratch-guard.js";
import { scratchRooms } from "../guest/scratch-rooms.js";
import type { ScratchThresholds } from "../guest/scratch-thresholds.js";
import { Ssh } from "../host/ssh.js";
import { parseCheckpoint } from "../libvirt/checkpoint-xml.js";
import type { DomainDefinition } from "../libvirt/domain-xml.js";
import { FRAGILE, fragileDisks } from "../libvirt/fragile-disks.js";
import { guestEnd } from "../libvirt/guest-end.js";
import { hostOf } from "../libvirt/hypervisor.js";
import {
  type BackupJob,
  type BackupServer,
  type ExportedDisk,
  exportedDisks,
  type IncrementalDisk,
  parseBackupJob,
} from "../libvirt/job-xml.js";
import { type Libvirt, PATIENCE_MS } from "../libvirt/libvirt.js";
import { openRunningJob, type RunningJob } from "../libvirt/running-job.js";
import { canBeSameJob } from "../libvirt/same-job.js";
import { assertCompressible } from "../pull/compressed-store.js";
import { domainFolder } from "../repository/domain-folder.js";
import { isSame, type Manifest } from "../repository/manifest.js";
import { pointsOf } from "../repository/point-owners.js";
import { Repository } from "../repository/repository.js";
import type { PointDisk, TakePointOptions, TakeSettings } from "./take-options.js";
import { type TakenPoint, takePoint } from "./take-point.js";

/** The source of the job's description: libvirt, or an XML document alone. */
export type JobSource =
  | {
      readonly kind: "libvirt";
      readonly libvirt: Libvirt;
      readonly domain: string;
      readonly xml?: string | undefined;
    }
  | {
      readonly kind: "xml";
      readonly xml: string;
      readonly domain: string;
      /** The domain's UUID, if it is known. */
      readonly uuid?: string | undefined;
    };

export interface AttachOptions extends TakeSettings {
  readonly source: JobSource;
  /** Created after the job was found, if the path does not exist or is an empty folder. */
  readonly repositoryPath: string;
  /** As root too, write to a repository that other users can write to; default: refuse it (`E_STRANGERS`). */
  readonly trustRepository?: boolean | undefined;
  /**
   * The checkpoint that was created together with the job; without it the point can't be a base for
   * increments.
   */
  readonly checkpoint?: string | undefined;
  /** What becomes of disks that are encrypted on their host; default: stored, with a warning. */
  readonly encrypted?: EncryptedPolicy | undefined;
  /** End the job after the commit. By default it keeps running, since another program began it. */
  readonly endJob: boolean;
  /**
   * Bytes that must stay free for scratch files, or the backup is given up; default a tenth of the room at
   * the beginning, at most 4 GiB.
   */
  readonly scratchReserve?: number | undefined;
}

export type AttachResult = TakenPoint & { readonly jobEnded: boolean };

/**
 * Takes all disks of a running pull backup job as one restore point. The job keeps running unless `endJob` is
 * set, since another program began it. Scratch files on this host are watched: when they run out of room the
 * backup is given up, so that the user can end the job before the guest's writes fail. With `endJob` the job
 * is ended then too.
 *
 * @throws {UsageError} `endJob` without libvirt, or compression for what can't be compressed
 * @throws {PreconditionError} no such job, no parent for an increment, the checkpoint isn't the job's, a
 *   disk is encrypted, or the job ended
 * @throws as `takePoint` does
 */
export async function attach(options: AttachOptions): Promise<AttachResult> {
  const { source } = options;
  if (source.kind === "xml" && options.endJob) {
    throw new UsageError(
      "E_END_JOB",
      "--end-job needs libvirt: name the domain instead of giving only its XML",
    );
  }
  if (options.compress) assertCompressible(options.format, options.compress);
  const view = source.kind === "xml" ? viewOfXml(source) : await viewOfLibvirt(source);
  const fragile = await view.fragileDisks();
  const isFragile = fragile.length > 0;
  if (isFragile && !options.endJob) throw refuseToLeave(view.domain.name, fragile);
  const job: AttachedJob = { source, view, clients: new JobClients(), isFragile };
  let taken: TakenPoint;
  try {
    taken = await take(job, options);
  } catch (error) {
    const ended = options.signal?.aborted ? undefined : await view.ended(error);
    if (isFragile && !ended && (await endJob(job, options, "the backup failed"))) {
      options.onWarning?.(`the job was ended although the backup failed: ${FRAGILE}`);
    }
    await job.clients.disconnect();
    throw ended ?? error;
  }
  // The point is committed: nothing from here on, not even Ctrl-C, makes the backup fail.
  const jobEnded = options.endJob && (await endJob(job, options, "the point was committed"));
  await job.clients.disconnect();
  return { ...taken, jobEnded };
}

/** The job, and this program's connections to it. */
interface AttachedJob {
  readonly source: JobSource;
  readonly view: JobView;
  readonly clients: JobClients;
  /** Whether the guest dies if they leave before the job has ended. */
  readonly isFragile: boolean;
}

function refuseToLeave(name: string, disks: readonly string[]): PreconditionError {
  const message = `${FRAGILE}: ${name} has iothreads (${disks.join(", ")}), so attach must be the one that ends the job, while it is still connected. Nothing was stored: give --end-job, or let a newer QEMU run the domain`;
  return new PreconditionError("E_FRAGILE_GUEST", message, { details: { domain: name, disks } });
}

async function take(job: AttachedJob, options: AttachOptions): Promise<TakenPoint> {
  const { view, clients } = job;
  const { checkpoint, repositoryPath, trustRepository: trusted, signal } = options;
  const names = view.disks.map(({ name }) => name);
  if (view.running) judgeEncrypted(view.running, names, options);
  const connection = await connectionTo(job, options);
  clients.connection = connection;
  const existing = await Repository.openIfThere(repositoryPath, { trusted });
  const home = existing ? await domainFolder(existing, view.domain) : view.domain.name;
  const chosen = (): Promise<PointDisk[]> => pointDisks(view, connection, existing, home, options);
  const disks = existing ? await existing.reading(home, chosen, signal) : await chosen();
  if (checkpoint === undefined) {
    options.onWarning?.("no --checkpoint was given: this point will be no base for increments");
  }
  const point = checkpoint === undefined ? null : await view.checkpoint(checkpoint);
  const repository = existing ?? (await Repository.openOrCreate(repositoryPath, { trusted }));
  const { domain, definition, confirm } = view;
  const giveUp = async (): Promise<void> => {
    if (options.endJob) await endJob(job, options, "the backup was given up");
    else await clients.disconnect();
  };
  const connect = patientBy(connection, { ...options.connect, reconnect: reconnectOf(job, options) });
  const known = { repository, domain, definition, disks, checkpoint: point, clients: clients.all, confirm };
  return await whileScratchLasts({ ...scratchSettings(view, options), giveUp }, (lasting) =>
    connection.walk(lasting, (walking) =>
      view.whileItRuns(walking, (running) =>
        takePoint({ ...options, ...known, connect, clientsStay: job.isFragile, signal: running }),
      ),
    ),
  );
}

/**
 * The user's XML has the server's address as seen from here; libvirt's XML has the address on libvirt's host.
 */
async function connectionTo(job: AttachedJob, options: AttachOptions): Promise<JobConnection> {
  const { source, view } = job;
  const { server } = view;
  if (source.kind === "xml" || source.xml !== undefined) return directConnection(server);
  const { hostOverride } = options.connect;
  const hypervisor = await source.libvirt.hypervisor();
  const reconnects = reconnectOf(job, options) !== undefined;
  return await connectJobAnywhere(server, { hypervisor, hostOverride, reconnects, signal: options.signal });
}

/**
 * A client that left costs a fragile guest its life. Without libvirt nothing can confirm that the job is still
 * the same; over TCP, another one may listen on its port.
 */
function reconnectOf(
  { source, view, isFragile }: AttachedJob,
  { connect }: AttachOptions,
): ReconnectOptions | undefined {
  const isUnknown = source.kind === "xml" && view.server.transport === "tcp";
  return isFragile || isUnknown ? undefined : connect.reconnect;
}

function scratchSettings(
  { domain: { name }, scratchFiles: files, thresholds }: JobView,
  { endJob, scratchReserve: reserve, onWarning, signal }: AttachOptions,
): Omit<ScratchGuardOptions, "giveUp"> {
  const remedy = endJob
    ? "The job was ended. Begin the next one with scratch files where there is more room, or when the guest writes less"
    : `The job still runs, but nobody reads from it: end it now, \`virsh domjobabort ${domainWord(name)}\`, and begin the next one with scratch files where there is more room`;
  return { domain: name, files, thresholds, reserve, remedy, onWarning, signal };
}

/**
 * Ends the job and then disconnects from it.
 * @param what happened to the backup, for the warning if the job can't be ended
 */
async function endJob(
  { source, view, clients, isFragile }: AttachedJob,
  options: AttachOptions,
  what: string,
): Promise<boolean> {
  if (source.kind === "xml") return false;
  const { uuid, name } = view.domain;
  // Who interrupts need not wait for a libvirt that is away, unless the guest would not survive it.
  const signal = isFragile || options.signal?.aborted ? undefined : options.signal;
  const libvirt = source.libvirt.withSignal(signal).withPatience(PATIENCE_MS);
  try {
    await clients.outlive(async () => {
      // Its owner may have ended it, and begun another one.
      await view.assertStillThere(signal);
      await libvirt.abortJob(uuid ?? name, { isOurs: view.isThisJob, onWait: options.onWarning });
    });
    return true;
  } catch (error) {
    if (hasCode(error, "E_JOB_ENDED")) return true;
    const reason = messageOf(error);
    options.onWarning?.(`${what}, but the job could not be ended: ${reason}`);
    return false;
  }
}

/** What `attach` needs to know of a job, from libvirt or from XML. */
interface JobView {
  readonly domain: TakePointOptions["domain"];
  /** The domain as libvirt has it; undefined if it is not asked. */
  readonly running?: DomainDefinition | undefined;
  readonly definition?: Definition | undefined;
  readonly server: BackupServer;
  readonly disks: readonly ExportedDisk[];
  /** The job's scratch files on this host. */
  readonly scratchFiles: readonly string[];
  /** For scratch images that can't be looked at from here. */
  readonly thresholds?: ScratchThresholds | undefined;
  /** Looks up the checkpoint that was created together with the job. */
  readonly checkpoint: (name: string) => Promise<NonNullable<Manifest["checkpoint"]>>;
  /** When the checkpoint that an increment starts from was created; undefined if unknown. */
  readonly creationTime: (name: string) => Promise<number | undefined>;
  /** Whether the XML of a job can be of this one. */
  readonly isThisJob: (backupXml: string) => boolean;
  readonly confirm: () => Promise<void>;
  /** Like `confirm`, with another signal or none. */
  readonly assertStillThere: (signal: AbortSignal | undefined) => Promise<void>;
  /** Runs `work` with a signal that also fires when the job ends. */
  readonly whileItRuns: RunningJob["whileItRuns"];
  /** The disks that `fragileDisks` names; none if the domain is unknown. */
  readonly fragileDisks: () => Promise<readonly string[]>;
  /** The error that names the end of the guest, if that is why the backup failed. */
  readonly ended: (error: unknown) => Promise<BackupError | undefined>;
}

/**
 * A job known by XML alone: creation times are unknown, and the UUID if the user has not given it. Nothing confirms
 * that the job still runs.
 */
function viewOfXml({ xml, domain, uuid }: Extract<JobSource, { kind: "xml" }>): JobView {
  const job = parseBackupJob(xml);
  return {
    domain: { name: domain, uuid: uuid?.toLowerCase() ?? null },
    server: job.server,
    disks: someDisks(exportedDisks(job)),
    scratchFiles: [],
    checkpoint: async (name) => ({ name, creationTime: null }),
    creationTime: async () => undefined,
    isThisJob: () => true,
    confirm: async () => undefined,
    assertStillThere: async () => undefined,
    whileItRuns: (signal, work) => work(signal ?? new AbortController().signal),
    fragileDisks: async () => [],
    ended: async () => undefined,
  };
}

async function viewOfLibvirt({
  libvirt,
  domain,
  xml,
}: Extract<JobSource, { kind: "libvirt" }>): Promise<JobView> {
  const running = await openRunningJob({ libvirt, domain });
  const job = xml === undefined ? running.job : parseBackupJob(xml);
  if (!isDeepStrictEqual(rolesOf(job), rolesOf(running.job))) {
    const message = `the XML is not of the job that runs on ${running.domain.name}: its disks, modes, bases, exports or bitmaps differ. Only where the server is reached may; take the XML from virsh backup-dumpxml`;
    throw new PreconditionError("E_XML_DIFFERS", message, { details: { domain: running.domain.name } });
  }
  const times = new Map<string, Promise<number | undefined>>();
  const creationTime = (name: string): Promise<number | undefined> => {
    const time = times.get(name) ?? creationTimeOf(libvirt, running.domain.uuid, name);
    times.set(name, time);
    return time;
  };
  const hypervisor = await libvirt.hypervisor();
  const host = hostOf(hypervisor);
  const ssh = hypervisor.kind === "ssh" ? new Ssh(hypervisor.target) : undefined;
  return {
    domain: { name: running.domain.name, uuid: running.domain.uuid },
    running: running.domain,
    definition: { xml: running.domainXml, host },
    server: job.server,
    disks: someDisks(exportedDisks(job)),
    scratchFiles: host === undefined ? scratchFilesOf(running.job) : [],
    thresholds: { libvirt, domain: running.domain, rooms: scratchRooms(running.job, ssh) },
    checkpoint: async (name) => {
      const { creationTime } = await running.checkpoint(name);
      return { name, creationTime };
    },
    creationTime,
    isThisJob: (backupXml) => canBeSameJob(parseBackupJob(backupXml), running.job),
    confirm: () => running.assertAlive(),
    assertStillThere: (signal) => running.withSignal(signal).assertAlive(),
    whileItRuns: (signal, work) => running.whileItRuns(signal, work),
    fragileDisks: () => fragileDisks(libvirt, running.domain),
    ended: (error) => guestEnd(libvirt.withSignal(undefined), running.domain, error),
  };
}

function scratchFilesOf(job: BackupJob): readonly string[] {
  return exportedDisks(job).flatMap(({ scratch }) => (scratch?.type === "file" ? [scratch.path] : []));
}

/** Undefined if the checkpoint was deleted after the job began. */
async function creationTimeOf(
  libvirt: Libvirt,
  domain: string,
  checkpoint: string,
): Promise<number | undefined> {
  try {
    return parseCheckpoint(await libvirt.checkpointXml(domain, checkpoint)).creationTime;
  } catch (error) {
    if (hasCode(error, "E_NO_CHECKPOINT")) return undefined;
    throw error;
  }
}

function someDisks(disks: readonly ExportedDisk[]): readonly ExportedDisk[] {
  if (disks.length > 0) return disks;
  throw new PreconditionError("E_NO_DISKS", "the backup job has no disk that takes part: nothing was stored");
}

/** The disks of a job without the fields that can differ between two descriptions of the same job. */
function rolesOf(job: BackupJob): readonly object[] {
  return exportedDisks(job).map((disk) => ({ ...disk, index: undefined, scratch: undefined }));
}

async function pointDisks(
  view: JobView,
  connection: JobConnection,
  repository: Repository | undefined,
  home: string,
  options: AttachOptions,
): Promise<PointDisk[]> {
  const warn = ({ message }: DamageError): void => options.onWarning?.(message);
  const points = (await repository?.points(home, warn)) ?? [];
  const others = view.disks.some((disk) => disk.mode === "incremental");
  const disks: PointDisk[] = [];
  for (const disk of view.disks) {
    const { name } = disk;
    const address = connection.addressOf(disk.exportName);
    if (disk.mode === "incremental") {
      const parent = await findParent(disk, view, points, repository, home);
      disks.push({ name, address, increment: { bitmap: disk.bitmap, parent } });
    } else {
      disks.push({ name, address, reason: others ? "the job backs this disk up in full" : undefined });
    }
  }
  return disks;
}

/**
 * The newest point of the checkpoint that the job's increment of this disk starts from.
 *
 * A checkpoint can be deleted and another made with the same name, so the domain's UUID and the creation time
 * must match too, as far as they are known.
 *
 * @throws {PreconditionError} no point matches, or the chain of the point is broken
 */
async function findParent(
  disk: IncrementalDisk,
  view: JobView,
  points: readonly Manifest[],
  repository: Repository | undefined,
  home: string,
): Promise<Manifest> {
  const base = disk.incremental;
  const remedy = `begin the job with backupmode='full' for ${disk.name}, or attach to the repository that has that point`;
  const refuse = (code: string, what: string, cause?: unknown): PreconditionError =>
    new PreconditionError(code, `${disk.name}: ${what}. Nothing was stored: ${remedy}`, {
      cause,
      details: { disk: disk.name, checkpoint: base },
    });
  const isNamed = (point: Manifest): boolean =>
    point.checkpoint?.name === base && point.disks.some(({ name }) => name === disk.name);
  const ofDomain = pointsOf(points, view.domain.uuid).filter(isNamed);
  const created = await view.creationTime(base);
  const parent = ofDomain.findLast(({ checkpoint }) => isSame(checkpoint?.creationTime, created));
  if (repository && parent) {
    await proveChain(repository, home, parent, disk.name).catch((error: unknown) => {
      if (!(error instanceof DamageError)) throw error;
      const what = `an increment on ${parent.id} could not be restored: ${error.message}`;
      throw refuse("E_BROKEN_CHAIN", what, error);
    });
    return parent;
  }
  if (ofDomain.length > 0) {
    const what = `checkpoint ${base} was made anew since the repository's point of it was taken`;
    throw refuse("E_OTHER_CHECKPOINT", `${what}${created === undefined ? "" : ` (at ${asTime(created)})`}`);
  }
  const { name } = view.domain;
  const others = home === name ? [] : ((await repository?.points(name, () => undefined)) ?? []);
  if ([...points, ...others].some(isNamed)) {
    throw refuse(
      "E_OTHER_DOMAIN",
      `the point of checkpoint ${base} is of another domain of this name, by its UUID`,
    );
  }
  throw refuse(
    "E_NO_PARENT",
    `the job counts its changes from checkpoint ${base}, of which the repository has no point`,
  );
}

function asTime(seconds: number): string {
  return new Date(seconds * 1000).toISOString();
}
