/** A running domain at one moment, to be looked at: a backup job of which no point is made. */
import type { ReconnectOptions } from "../../nbd/index.js";
import { PreconditionError } from "../base/errors.js";
import { together } from "../base/in-parallel.js";
import { claimFolder, clearFolder } from "../guest/claim.js";
import { type Guest, keyOf } from "../guest/guest.js";
import { JobClients } from "../guest/job-clients.js";
import { connectJob, type JobConnection } from "../guest/job-connection.js";
import { JobFolder } from "../guest/job-folder.js";
import { lookAtDisk, versionHere } from "../guest/look-at-disk.js";
import { forecast } from "../guest/plan-guest.js";
import { refuseShortScratch, whileScratchLasts } from "../guest/scratch-guard.js";
import { freeBytesThere, scratchRooms } from "../guest/scratch-rooms.js";
import { WAY } from "../guest/ssh-job-folder.js";
import { sshTo } from "../guest/ssh-to-hypervisor.js";
import { disksToBackUp } from "../libvirt/choose-disks.js";
import { parseDomain } from "../libvirt/documents/domain-xml.js";
import { fragileDisks, patienceToEnd } from "../libvirt/fragile-disks.js";
import { guestEnd } from "../libvirt/guest-end.js";
import { domainFolder } from "../repository/domain-folder.js";
import { Repository } from "../repository/repository.js";
import type { BackupOptions } from "./backup-options.js";
import { type BegunJob, begin, scratchSettings, serverOf } from "./begin-job.js";
import { clearAfterFailure } from "./clear-traces.js";

export interface LookOptions
  extends Pick<
    BackupOptions,
    | "libvirt"
    | "domain"
    | "repositoryPath"
    | "scratchParent"
    | "scratchReserve"
    | "trustRepository"
    | "signal"
    | "onWarning"
  > {
  /** How a lost connection is got back; undefined: it fails the work. */
  readonly reconnect?: ReconnectOptions | undefined;
}

export interface FrozenDomain {
  readonly guest: Guest;
  /** Name of the domain's folder in the repository. */
  readonly home: string;
  readonly begun: BegunJob;
  readonly connection: JobConnection;
  /** Gets the clients; they are closed with the job. */
  readonly clients: JobClients;
  /** As asked for, unless the guest would not survive it. */
  readonly reconnect: ReconnectOptions | undefined;
  /** Aborted when the job is lost, too. */
  readonly signal: AbortSignal;
}

/**
 * Begins a backup job of all disks, without a checkpoint, and ends it after `work`. While it runs, nobody
 * prunes the domain's points. What a dead backup to the same repository left is removed first; a failure
 * removes everything that was made.
 *
 * @param level `incremental`: of the disks that have a base, with the bitmaps of the chain's checkpoint;
 *   `full`: of all
 * @throws {PreconditionError} the domain is off or busy, another backup runs, or no disk has a base
 */
export async function lookAtFrozen<T>(
  options: LookOptions,
  level: "incremental" | "full",
  work: (frozen: FrozenDomain) => Promise<T>,
): Promise<T> {
  const { libvirt, signal } = options;
  const [hypervisor, definition] = await together(libvirt.hypervisor(), libvirt.domainXml(options.domain));
  const domain = parseDomain(definition);
  if (domain.id === undefined) {
    const message = `${domain.name} is off, ${WHILE_OFF[level]}`;
    throw new PreconditionError("E_DOMAIN_OFF", message, { details: { domain: domain.name } });
  }
  const ssh = await sshTo(hypervisor, signal);
  const repository = await Repository.open(options.repositoryPath, {
    trusted: options.trustRepository,
    signal,
    onWarning: options.onWarning,
  });
  const guest: Guest = { libvirt, domain, repository, ssh };
  const home = await domainFolder(repository, domain);
  const chosen = disksToBackUp(domain, { include: [], exclude: [] });
  const readVersion = ssh ? undefined : versionHere;
  const disks = await together(...chosen.map((disk) => lookAtDisk(libvirt, domain, disk, readVersion)));
  // No image is made, so the format does not matter.
  const { onWarning } = options;
  const planned = { level, format: "raw", disksAlone: true, signal, onWarning } as const;
  const foreseen = await forecast(guest, disks, { ...planned, broken: new Map() });
  const folder = await JobFolder.find(options.scratchParent, keyOf(guest), ssh);
  const isFragile = (await fragileDisks(libvirt, domain)).length > 0;
  const reconnect = isFragile ? undefined : options.reconnect;
  await claimFolder(guest, folder, options);
  const patience = patienceToEnd(domain);
  const cleaner: Guest = { ...guest, libvirt: libvirt.withSignal(undefined).withPatience(patience) };
  const traces = { folder, made: undefined, clients: new JobClients(), isCleared: false };
  const { clients } = traces;
  let result: T;
  try {
    const scratch = scratchSettings(guest, folder, disks, options);
    refuseShortScratch(scratch);
    const before = ssh && freeBytesThere(ssh, folder.path);
    before?.catch(() => undefined);
    const server = serverOf(folder, { server: undefined });
    const connection = await connectJob(server, {
      hypervisor,
      hostOverride: undefined,
      socket: folder.file("nbd.sock"),
      note: folder.fileThere(WAY),
      reconnects: reconnect !== undefined,
      signal,
    });
    clients.connection = connection;
    const giveUp = async (): Promise<void> => {
      await clearFolder(cleaner, folder, { ...options, clients });
      traces.isCleared = true;
    };
    const look = async (begun: BegunJob, running: AbortSignal): Promise<T> => {
      const done = await work({ guest, home, begun, connection, clients, reconnect, signal: running });
      await begun.job.assertAlive();
      return done;
    };
    // Until the end no prune may change the chains.
    result = await repository.reading(
      home,
      async () => {
        const begun = await begin(guest, { disks, forecast: foreseen }, { ...traces, server }, planned);
        signal?.throwIfAborted();
        const thresholds = { libvirt, domain, rooms: scratchRooms(begun.job.job, ssh, before) };
        return await whileScratchLasts({ ...scratch, thresholds, signal, giveUp }, (lasting) =>
          connection.walk(lasting, (walking) =>
            begun.job.whileItRuns(walking, (running) => look(begun, running)),
          ),
        );
      },
      signal,
    );
  } catch (error) {
    const ended = signal?.aborted ? undefined : await guestEnd(libvirt.withSignal(undefined), domain, error);
    await clearAfterFailure(cleaner, traces, options);
    throw ended ?? error;
  }
  await clearAfterFailure(cleaner, traces, options);
  return result;
}

/** Why a domain has to run, and what to do with one that doesn't. */
const WHILE_OFF = {
  incremental:
    "and only a running domain's disks can be compared: start it, or take a backup with --prove-base=all, which compares them while it is off",
  full: "and only a running domain's disks can be read this way: start it, or serve each image by qemu-nbd -r and name it with --from DISK=URI",
} as const;
