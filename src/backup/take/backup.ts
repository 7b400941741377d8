import { hasCode, messageOf } from "../base/errors.js";
import { together } from "../base/in-parallel.js";
import { preflight } from "../checks/preflight.js";
import { CheckpointRecord } from "../guest/checkpoint-record.js";
import { claimFolder, clearFolder } from "../guest/claim.js";
import { judgeEncrypted } from "../guest/encrypted-disks.js";
import { type Guest, keyOf } from "../guest/guest.js";
import { JobClients } from "../guest/job-clients.js";
import { connectJob, type JobConnection, patientBy, refuseUnreachable } from "../guest/job-connection.js";
import { JobFolder } from "../guest/job-folder.js";
import type { Level } from "../guest/levels.js";
import { lookAtDisk, versionHere } from "../guest/look-at-disk.js";
import { levelOf } from "../guest/plan-guest.js";
import { refuseShortScratch, whileScratchLasts } from "../guest/scratch-guard.js";
import { freeBytesThere, scratchRooms } from "../guest/scratch-rooms.js";
import { WAY } from "../guest/ssh-job-folder.js";
import { sshTo } from "../guest/ssh-to-hypervisor.js";
import { usualStateFolder } from "../host/state-folder.js";
import { checkpointPrefix } from "../libvirt/checkpoints.js";
import { disksLeftOut, disksToBackUp, type LeftOutDisk, obstacleOf } from "../libvirt/choose-disks.js";
import { type DomainDefinition, parseDomain } from "../libvirt/documents/domain-xml.js";
import { exportedDisks } from "../libvirt/documents/job-xml.js";
import { clientsMustStay, fragileDisks, patienceToEnd } from "../libvirt/fragile-disks.js";
import { guestEnd } from "../libvirt/guest-end.js";
import { assertCompressible } from "../pull/compressible.js";
import { refuseRawInStore } from "../repository/refuse-store.js";
import { Repository } from "../repository/repository.js";
import type { BackupOptions } from "./backup-options.js";
import { type BegunJob, begin, scratchSettings, serverOf } from "./begin-job.js";
import { clearAfterFailure, deleteOrphans, endJob, type Made, type Traces } from "./clear-traces.js";
import { levelWhenDue } from "./full-due.js";
import { judgeLeftPoint, resumableOf } from "./left-point.js";
import type { PointDisk, TakePointOptions } from "./take-options.js";
import type { TakenPoint } from "./take-point.js";

export interface BackupResult extends TakenPoint {
  /** The level of the point that was made, which may differ from the level that was asked for. */
  readonly level: Exclude<Level, "auto">;
  /** False if the domain is off; the point then has no checkpoint of its own. */
  readonly isRunning: boolean;
  /** This repository's checkpoints that were deleted because no increment starts from them any longer. */
  readonly retired: readonly string[];
  /** Disks with media that took no part, although nobody had excluded them. */
  readonly leftOut: readonly LeftOutDisk[];
  /** The disks that are encrypted on their host, and are plain text in the point. */
  readonly plainText: readonly string[];
}

/**
 * Backs up one domain. If the domain runs, this begins a job and its checkpoint, pulls all disks as one
 * restore point, ends the job, and deletes the checkpoints that are no longer needed. If it is off, see
 * `backUpStopped`. If a dead backup to the same repository has left its job and a part of its point, and both
 * fit, this goes on with that point; otherwise what it left is removed first, and a new one is begun. A
 * backup that fails removes everything it made.
 *
 * @throws {PreconditionError} the domain is busy, another backup runs, a disk can't take part or is
 *   encrypted, no base for an increment
 * @throws {BackupError} `E_GUEST_ENDED`: the guest crashed, was shut down or destroyed meanwhile
 * @throws as `takePoint` does
 */
export async function backup(options: BackupOptions): Promise<BackupResult> {
  const { onWarning } = options;
  const said = new Set<string>();
  const warn = (message: string): void => {
    if (!said.has(message)) onWarning?.(message);
    said.add(message);
  };
  try {
    return await backUpOnce({ ...options, onWarning: warn });
  } catch (error) {
    // What was to be gone on with is gone, and by now its job, too: nothing is in the way of a new one.
    if (!hasCode(error, "E_LEFT_POINT")) throw error;
    options.signal?.throwIfAborted();
    warn(`a new point is begun: ${messageOf(error)}`);
    return await backUpOnce({ ...options, onWarning: warn, resume: false });
  }
}

async function backUpOnce(asked: BackupOptions): Promise<BackupResult> {
  const { libvirt, signal } = asked;
  refuseRawInStore(asked.repositoryPath, asked.format);
  if (asked.compress) assertCompressible(asked.format, asked.compress);
  const [hypervisor, definition] = await together(libvirt.hypervisor(), libvirt.domainXml(asked.domain));
  const domain = parseDomain(definition);
  const leftOut = leaveOut(domain, asked);
  if (domain.id === undefined) {
    const { backUpStopped } = await import("./stopped-backup.js");
    const taken = await backUpStopped(domain, definition, asked);
    return { ...taken, isRunning: false, retired: [], leftOut, plainText: [] };
  }
  const options = { ...asked, level: await levelWhenDue(domain, asked) };
  const ssh = await sshTo(hypervisor, signal);
  const chosen = disksToBackUp(domain, options.disks);
  // On another host each look takes a connection, and images of version 2 are rare.
  const readVersion = ssh ? undefined : versionHere;
  const disks = await together(...chosen.map((disk) => lookAtDisk(libvirt, domain, disk, readVersion)));
  const names = disks.map(({ name }) => name);
  const plainText = judgeEncrypted(domain, names, options);
  const forecast = await preflight({ ...options, domain, disks, ssh });
  const repository = await Repository.openOrCreate(options.repositoryPath, {
    trusted: options.trustRepository,
    signal,
    onWarning: options.onWarning,
  });
  const guest: Guest = { libvirt, domain, repository, ssh };
  const usual = await JobFolder.find(options.scratchParent, keyOf(guest), ssh);
  const record = await recordOf(guest, options);
  // A client that left costs such a guest its life: one that comes back only delays the end of the job.
  const isFragile = (await fragileDisks(libvirt, domain)).length > 0;
  const reconnect = isFragile ? undefined : options.connect.reconnect;
  const { folder, left } = await claimFolder(guest, usual, {
    ...options,
    goOn: async (job) => {
      const found = await judgeLeftPoint(guest, job, disks, options);
      if (!found || "note" in found) return found;
      const ofWhen = found.createdAt === undefined ? "" : ` of ${found.createdAt}`;
      options.onWarning?.(
        `what a killed backup has stored${ofWhen} is cleared away, and a new point is begun: ${found.because}`,
      );
      return undefined;
    },
  });
  const patience = patienceToEnd(domain);
  const cleaner: Guest = { ...guest, libvirt: libvirt.withSignal(undefined).withPatience(patience) };
  const ofLeft = left?.begun.checkpoint?.name;
  const made: Made = { names: ofLeft === undefined ? [] : [ofLeft], record };
  const clients = new JobClients();
  if (ssh && !isFragile) clients.severThere = () => folder.sever();
  const traces: Traces = { folder, made, clients, isCleared: false };
  let taken: TakenPoint;
  try {
    await record.refresh();
    const scratch = scratchSettings(guest, folder, disks, options);
    refuseShortScratch(scratch);
    // A job that is gone on with has its images there already.
    const before = ssh && !left ? freeBytesThere(ssh, folder.path) : undefined;
    before?.catch(() => undefined);
    // The checkpoint of a point that is gone on with has no point yet.
    if (!left) await deleteOrphans(guest, made, options);
    const server = serverOf(folder, options);
    const connection = await connectJob(server, {
      hypervisor,
      hostOverride: options.connect.hostOverride,
      socket: folder.file("nbd.sock"),
      note: folder.fileThere(WAY),
      reconnects: reconnect !== undefined,
      signal,
    });
    clients.connection = connection;
    if (connection.straightTo && !left) await refuseUnreachable(connection.straightTo, signal);
    const begun =
      left?.begun ??
      (await begin(
        guest,
        { disks, forecast },
        { ...traces, server },
        { ...options, meanwhile: () => loadPulling(options) },
      ));
    const resumable = await resumableOf(guest, begun, { ...options, folder, left });
    signal?.throwIfAborted();
    const giveUp = async (): Promise<void> => {
      await clearFolder(cleaner, folder, { ...options, clients });
      traces.isCleared = true;
    };
    const thresholds = { libvirt, domain, rooms: scratchRooms(begun.job.job, ssh, before) };
    taken = await whileScratchLasts({ ...scratch, thresholds, signal, giveUp }, (lasting) =>
      connection.walk(lasting, (walking) =>
        begun.job.whileItRuns(walking, (running) =>
          pullDisks(
            guest,
            { ...begun, resumable },
            { connection, clients },
            {
              ...options,
              connect: patientBy(connection, { ...options.connect, reconnect }),
              signal: running,
            },
          ),
        ),
      ),
    );
  } catch (error) {
    const ended = signal?.aborted ? undefined : await guestEnd(libvirt.withSignal(undefined), domain, error);
    // The checkpoint of a domain that is off can't be deleted.
    await clearAfterFailure(cleaner, { ...traces, made: ended ? undefined : made }, options);
    throw ended ?? error;
  }
  // The point is committed: nothing from here on, not even Ctrl-C, makes the backup fail.
  const retired = await endJob(cleaner, traces, options);
  const level = levelOf(taken.manifest, options.level);
  return { ...taken, level, isRunning: true, retired, leftOut, plainText };
}

/** The disks that are left out unasked. There is a warning for those that the guest can write to. */
function leaveOut(domain: DomainDefinition, { disks, onWarning }: BackupOptions): readonly LeftOutDisk[] {
  const taken = disksToBackUp(domain, disks);
  const leftOut = disksLeftOut(domain, disks);
  for (const { disk, reason } of leftOut.filter(({ isWritable }) => isWritable)) {
    const all = [...taken.map(({ target }) => target), disk].map((name) => `--include ${name}`).join(" ");
    const canTake = domain.disks.some((each) => each.target === disk && !obstacleOf(each, [disk]));
    const remedy = canTake ? ` Take it too with ${all};` : "";
    onWarning?.(
      `${disk} of ${domain.name} is left out: ${reason}.${remedy} --exclude ${disk} says nothing more of it`,
    );
  }
  return leftOut;
}

async function recordOf(guest: Guest, options: BackupOptions): Promise<CheckpointRecord> {
  const { libvirt, domain, repository } = guest;
  const { stateFolder = usualStateFolder(), moved = false, onWarning } = options;
  const prefix = checkpointPrefix(repository.id);
  const found = async (): Promise<string[]> =>
    (await libvirt.checkpointNames(domain)).filter((name) => name.startsWith(prefix));
  return await CheckpointRecord.open({
    ...{ stateFolder, repository, moved, found, onWarning },
    domainUuid: domain.uuid,
  });
}

type Image = Pick<BackupOptions, "format" | "compress" | "digests">;

/**
 * Loads what each way to back up a domain needs, whether it runs or not, for a run of several domains:
 * `backup` loads it when it is needed, and by then the program's files may be those of another version.
 */
export async function loadBackups(image: Image): Promise<void> {
  await Promise.all([import("./stopped-backup.js"), import("execa"), loadPulling(image)]);
}

/** Loads what pulls into such images. A failure is met by whoever waits for it. */
function loadPulling(image: Image): Promise<typeof import("./take-point.js")> {
  const loading = import("./take-point.js").then(async (taking) => {
    await taking.loadForPoint(image);
    return taking;
  });
  loading.catch(() => undefined);
  return loading;
}

async function pullDisks(
  guest: Guest,
  {
    job,
    plans,
    checkpoint,
    exported,
    resumable,
  }: BegunJob & { readonly resumable: TakePointOptions["resumable"] },
  { connection, clients }: { readonly connection: JobConnection; readonly clients: JobClients },
  options: BackupOptions,
): Promise<TakenPoint> {
  const { domain, repository, ssh } = guest;
  const disks = (exported ?? exportedDisks(job.job)).map((disk): PointDisk => {
    const planned = plans.find(({ name }) => name === disk.name);
    const increment =
      planned?.base && disk.mode === "incremental"
        ? { bitmap: disk.bitmap, parent: planned.base.parent }
        : undefined;
    return {
      name: disk.name,
      address: connection.addressOf(disk.exportName),
      increment,
      reason: planned?.reason,
    };
  });
  const { takePoint } = await loadPulling(options);
  return await takePoint({
    ...options,
    repository,
    domain: { name: domain.name, uuid: domain.uuid },
    definition: { xml: job.domainXml, host: ssh?.target.host },
    disks,
    checkpoint,
    clients: clients.all,
    onOpening: (client) => clients.isOpening(client),
    resumable,
    clientsStay: clientsMustStay(domain),
    confirm: (sure) => job.withSignal(sure).assertAlive({ onWait: options.onWarning }),
  });
}
