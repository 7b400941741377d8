import { isDeepStrictEqual } from "node:util";
import { type BackupError, hasCode, PreconditionError } from "../base/errors.js";
import type { Definition } from "../guest/keep-files.js";
import { scratchRooms } from "../guest/scratch-rooms.js";
import type { ScratchThresholds } from "../guest/scratch-thresholds.js";
import { Ssh } from "../host/ssh.js";
import { parseCheckpoint } from "../libvirt/documents/checkpoint-xml.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import {
  type BackupJob,
  type BackupServer,
  type ExportedDisk,
  exportedDisks,
  parseBackupJob,
} from "../libvirt/documents/job-xml.js";
import { fragileDisks } from "../libvirt/fragile-disks.js";
import { guestEnd } from "../libvirt/guest-end.js";
import { hostOf } from "../libvirt/hypervisor.js";
import { openRunningJob, type RunningJob } from "../libvirt/job/running-job.js";
import { canBeSameJob } from "../libvirt/job/same-job.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Manifest } from "../repository/manifest.js";
import type { TakePointOptions } from "./take-options.js";

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

/** What `attach` needs to know of a job, from libvirt or from XML. */
export interface JobView {
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
  /** @param onWait called with a message if libvirt has to be asked again */
  readonly confirm: (signal: AbortSignal, onWait?: (message: string) => void) => Promise<void>;
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
 * @throws {PreconditionError} there is no such job, it has no disks, or the XML is of another one
 * @throws {DamageError} the XML can't be understood
 */
export async function viewOf(source: JobSource): Promise<JobView> {
  return source.kind === "xml" ? viewOfXml(source) : await viewOfLibvirt(source);
}

/**
 * A job known by XML alone: creation times are unknown, and the UUID if the user has not given it. Nothing
 * confirms that the job still runs.
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
    confirm: (signal, onWait) => running.withSignal(signal).assertAlive({ onWait }),
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
