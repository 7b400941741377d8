import type { ReconnectOptions } from "../../nbd/index.js";
import { hasCode, messageOf, PreconditionError, UsageError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import { type EncryptedPolicy, judgeEncrypted } from "../guest/encrypted-disks.js";
import { JobClients } from "../guest/job-clients.js";
import {
  connectJobAnywhere,
  directConnection,
  type JobConnection,
  patientBy,
} from "../guest/job-connection.js";
import { type ScratchGuardOptions, whileScratchLasts } from "../guest/scratch-guard.js";
import { FRAGILE, patienceToEnd } from "../libvirt/fragile-disks.js";
import { assertCompressible } from "../pull/compressible.js";
import { domainFolder } from "../repository/domain-folder.js";
import { refuseRawInStore } from "../repository/refuse-store.js";
import { Repository } from "../repository/repository.js";
import { attachedDisks } from "./attached-disks.js";
import { type JobSource, type JobView, viewOf } from "./job-view.js";
import type { PointDisk, TakeSettings } from "./take-options.js";
import { type TakenPoint, takePoint } from "./take-point.js";

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
 * set, since another program began it. Where libvirt is asked, scratch images are watched: files on this host
 * and on one that is reached by ssh, and block devices. When they run out of room the backup is given up, so
 * that the user can end the job before the guest's writes fail. With `endJob` the job is ended then too.
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
  refuseRawInStore(options.repositoryPath, options.format);
  if (options.compress) assertCompressible(options.format, options.compress);
  const view = await viewOf(source);
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
  const opening = { trusted, signal, onWarning: options.onWarning };
  const existing = await Repository.openIfThere(repositoryPath, opening);
  const home = existing ? await domainFolder(existing, view.domain) : view.domain.name;
  const chosen = (): Promise<PointDisk[]> =>
    attachedDisks(view, connection, existing, home, options.onWarning);
  const disks = existing ? await existing.reading(home, chosen, signal) : await chosen();
  if (checkpoint === undefined) {
    options.onWarning?.("no --checkpoint was given: this point will be no base for increments");
  }
  const point = checkpoint === undefined ? null : await view.checkpoint(checkpoint);
  const repository = existing ?? (await Repository.openOrCreate(repositoryPath, opening));
  const { domain, definition } = view;
  const confirm = (sure: AbortSignal): Promise<void> => view.confirm(sure, options.onWarning);
  const giveUp = async (): Promise<void> => {
    if (options.endJob) await endJob(job, options, "the backup was given up");
    else await clients.disconnect();
  };
  const connect = patientBy(connection, { ...options.connect, reconnect: reconnectOf(job, options) });
  const onOpening = (client: Promise<unknown>): void => clients.isOpening(client);
  const taken = { clients: clients.all, onOpening };
  const known = { repository, domain, definition, disks, checkpoint: point, ...taken, confirm };
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
 * A client that left costs a fragile guest its life. Without libvirt nothing can confirm that the job is
 * still the same; over TCP, another one may listen on its port.
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
  // Who interrupts this need not wait for a libvirt that is away, unless the guest would not survive it. Who
  // has interrupted the work before waits a minute for it.
  const signal = isFragile || options.signal?.aborted ? undefined : options.signal;
  const patience = patienceToEnd(view.running ?? { disks: [] });
  const libvirt = source.libvirt.withSignal(signal).withPatience(patience);
  try {
    await clients.outlive(async () => {
      // Its owner may have ended it, and begun another one.
      await view.assertStillThere(signal);
      await libvirt.abortJob(uuid === null ? name : { uuid, name }, {
        isOurs: view.isThisJob,
        onWait: options.onWarning,
      });
    });
    return true;
  } catch (error) {
    if (hasCode(error, "E_JOB_ENDED")) return true;
    const reason = messageOf(error);
    options.onWarning?.(`${what}, but the job could not be ended: ${reason}`);
    return false;
  }
}
