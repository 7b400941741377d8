import type { NbdAddress } from "../nbd/index.js";
import { findChain } from "./chain.js";
import { DamageError, PreconditionError, UsageError } from "./errors.js";
import { parseCheckpoint } from "./libvirt/checkpoint-xml.js";
import {
  type BackupServer,
  type ExportedDisk,
  exportedDisks,
  type IncrementalDisk,
  parseBackupJob,
} from "./libvirt/job-xml.js";
import { openRunningJob, type RunningJob } from "./libvirt/running-job.js";
import { hasCode, type Virsh } from "./libvirt/virsh.js";
import type { Manifest } from "./manifest.js";
import type { Repository } from "./repository.js";
import { type PointDisk, type TakenPoint, type TakePointOptions, takePoint } from "./take-point.js";

/** Where the job is described: by libvirt, or by an XML document alone. */
export type JobSource =
  | {
      readonly kind: "libvirt";
      readonly virsh: Virsh;
      readonly domain: string;
      readonly xml?: string | undefined;
    }
  | { readonly kind: "xml"; readonly xml: string; readonly domain: string };

export interface AttachOptions
  extends Pick<
    TakePointOptions,
    | "repository"
    | "format"
    | "digests"
    | "sync"
    | "tool"
    | "connect"
    | "window"
    | "rateLimit"
    | "signal"
    | "onProgress"
    | "onWarning"
  > {
  readonly source: JobSource;
  /** The checkpoint that was created together with the job; without it the point is no base for increments. */
  readonly checkpoint?: string | undefined;
  /** End the job after the commit; otherwise it goes on, since somebody else began it. */
  readonly endJob: boolean;
}

export type AttachResult = TakenPoint & { readonly jobEnded: boolean };

/**
 * Takes all disks of a pull backup that is already running as one restore point. The job is left running unless
 * `endJob`: somebody else began it.
 *
 * @throws {PreconditionError} no such job, no parent for an increment, the checkpoint isn't the job's, or the job ended
 * @throws as `takePoint` does
 */
export async function attach(options: AttachOptions): Promise<AttachResult> {
  const { source, checkpoint } = options;
  if (source.kind === "xml" && options.endJob) {
    throw new UsageError(
      "E_END_JOB",
      "--end-job needs libvirt: name the domain instead of giving only its XML",
    );
  }
  const view = source.kind === "xml" ? viewOfXml(source) : await viewOfLibvirt(source);
  const disks: PointDisk[] = [];
  const points = await options.repository.points(view.domain.name, ({ message }) =>
    options.onWarning?.(message),
  );
  for (const disk of view.disks) disks.push(await pointDisk(disk, view, points, options.repository));
  if (checkpoint === undefined) {
    options.onWarning?.("no --checkpoint was given: this point will be no base for increments");
  }
  const taken = await takePoint({
    ...options,
    domain: view.domain,
    domainXml: view.domainXml,
    disks,
    checkpoint: checkpoint === undefined ? null : await view.checkpoint(checkpoint),
    confirm: view.confirm,
  });
  if (options.endJob && source.kind === "libvirt") await source.virsh.abortJob(source.domain);
  return { ...taken, jobEnded: options.endJob };
}

/** What attaching has to know of a job, wherever it comes from. */
interface JobView {
  readonly domain: TakePointOptions["domain"];
  readonly domainXml?: string | undefined;
  readonly server: BackupServer;
  readonly disks: readonly ExportedDisk[];
  /** The checkpoint of the job's moment. */
  readonly checkpoint: (name: string) => Promise<NonNullable<Manifest["checkpoint"]>>;
  /** When the checkpoint that an increment starts from was created; undefined where nobody can be asked. */
  readonly creationTime: (name: string) => Promise<number | undefined>;
  readonly confirm: () => Promise<void>;
}

/** Libvirt is not asked: what it would know stays unknown, and that the servers still answer has to do. */
function viewOfXml({ xml, domain }: Extract<JobSource, { kind: "xml" }>): JobView {
  const job = parseBackupJob(xml);
  return {
    domain: { name: domain, uuid: null },
    server: job.server,
    disks: someDisks(exportedDisks(job)),
    checkpoint: async (name) => ({ name, creationTime: null }),
    creationTime: async () => undefined,
    confirm: async () => undefined,
  };
}

async function viewOfLibvirt({
  virsh,
  domain,
  xml,
}: Extract<JobSource, { kind: "libvirt" }>): Promise<JobView> {
  const running: RunningJob = await openRunningJob({ virsh, domain });
  const job = xml === undefined ? running.job : parseBackupJob(xml);
  return {
    domain: { name: running.domain.name, uuid: running.domain.uuid },
    domainXml: running.domainXml,
    server: job.server,
    disks: someDisks(exportedDisks(job)),
    checkpoint: async (name) => {
      const { creationTime } = await running.checkpoint(name);
      return { name, creationTime };
    },
    creationTime: (name) => creationTimeOf(virsh, running.domain.uuid, name),
    confirm: () => running.assertAlive(),
  };
}

/** A base that was deleted since the job began is one that nobody can be asked about. */
async function creationTimeOf(virsh: Virsh, domain: string, checkpoint: string): Promise<number | undefined> {
  try {
    return parseCheckpoint(await virsh.checkpointXml(domain, checkpoint)).creationTime;
  } catch (error) {
    if (hasCode(error, "E_NO_CHECKPOINT")) return undefined;
    throw error;
  }
}

function someDisks(disks: readonly ExportedDisk[]): readonly ExportedDisk[] {
  if (disks.length > 0) return disks;
  throw new PreconditionError("E_NO_DISKS", "the backup job has no disk that takes part: nothing was stored");
}

async function pointDisk(
  disk: ExportedDisk,
  view: JobView,
  points: readonly Manifest[],
  repository: Repository,
): Promise<PointDisk> {
  const { name } = disk;
  const address = addressOf(view.server, disk.exportName);
  if (disk.mode === "incremental") {
    const parent = await findParent(disk, view, points, repository);
    return { name, address, increment: { bitmap: disk.bitmap, parent } };
  }
  const others = view.disks.some((other) => other.mode === "incremental");
  return { name, address, reason: others ? "the job backs this disk up in full" : undefined };
}

/**
 * The newest point whose checkpoint is the one that the job counts this disk's changes from.
 *
 * Names can be deleted and made again, so domain and creation time have to be the same, as far as they are known.
 *
 * @throws {PreconditionError} there is none, it is another domain's or another checkpoint's, or its chain is broken
 */
async function findParent(
  disk: IncrementalDisk,
  view: JobView,
  points: readonly Manifest[],
  repository: Repository,
): Promise<Manifest> {
  const base = disk.incremental;
  const remedy = `begin the job with backupmode='full' for ${disk.name}, or attach to the repository that has that point`;
  const refuse = (code: string, what: string, cause?: unknown): PreconditionError =>
    new PreconditionError(code, `${disk.name}: ${what}. Nothing was stored: ${remedy}`, {
      cause,
      details: { disk: disk.name, checkpoint: base },
    });
  const parent = points.findLast(
    (point) => point.checkpoint?.name === base && point.disks.some(({ name }) => name === disk.name),
  );
  if (!parent) {
    throw refuse(
      "E_NO_PARENT",
      `the job counts its changes from checkpoint ${base}, of which the repository has no point`,
    );
  }
  const { uuid } = parent.domain;
  if (uuid !== null && view.domain.uuid !== null && uuid !== view.domain.uuid) {
    throw refuse("E_OTHER_DOMAIN", `point ${parent.id} is of another domain of this name (UUID ${uuid})`);
  }
  const known = parent.checkpoint?.creationTime ?? undefined;
  const now = await view.creationTime(base);
  if (known !== undefined && now !== undefined && known !== now) {
    throw refuse(
      "E_OTHER_CHECKPOINT",
      `checkpoint ${base} was made anew since point ${parent.id} was taken (created ${asTime(now)}, not ${asTime(known)})`,
    );
  }
  try {
    await findChain(repository, parent, disk.name);
  } catch (error) {
    if (!(error instanceof DamageError)) throw error;
    throw refuse(
      "E_BROKEN_CHAIN",
      `an increment on ${parent.id} could not be restored: ${error.message}`,
      error,
    );
  }
  return parent;
}

function asTime(seconds: number): string {
  return new Date(seconds * 1000).toISOString();
}

function addressOf(server: BackupServer, exportName: string): NbdAddress {
  if (server.transport === "unix") return { transport: { kind: "unix", path: server.socket }, exportName };
  const { host, port, tls } = server;
  return { transport: { kind: "tcp", host, port }, exportName, ...(tls ? { tls: {} } : {}) };
}
