import { hasCode } from "../base/errors.js";
import { together } from "../base/in-parallel.js";
import { whileFrozen } from "../guest/freeze.js";
import type { Guest } from "../guest/guest.js";
import type { JobFolder } from "../guest/job-folder.js";
import type { Level } from "../guest/levels.js";
import { versionHere, versionThere, withOldQcow2 } from "../guest/look-at-disk.js";
import { bitmapOf, type DiskPlan, type GuestDisk } from "../guest/plan-disk.js";
import { type Forecast, LOST, planGuest, refuseNoBase } from "../guest/plan-guest.js";
import type { ScratchSettings } from "../guest/scratch-guard.js";
import type { ImageFormat } from "../image/image.js";
import { checkpointName } from "../libvirt/checkpoints.js";
import {
  formatBackup,
  formatCheckpoint,
  type JobRequest,
  type TcpServer,
} from "../libvirt/documents/begin-xml.js";
import { parseCheckpoint } from "../libvirt/documents/checkpoint-xml.js";
import type { BackupServer, ExportedDisk } from "../libvirt/documents/job-xml.js";
import { openRunningJob, type RunningJob } from "../libvirt/job/running-job.js";
import { errorNumberOf, saidIn } from "../libvirt/libvirt-errors.js";
import { isNamedIn } from "../libvirt/named-in.js";
import { NUMBER } from "../libvirt/rpc/errors.js";
import type { Manifest } from "../repository/manifest.js";
import type { Made } from "./clear-traces.js";

/** A running job, with the plans and the checkpoint that it was begun with. */
export interface BegunJob {
  readonly job: RunningJob;
  readonly plans: readonly DiskPlan[];
  readonly checkpoint: Manifest["checkpoint"];
  /** Its disks as libvirt described them when it began; a restarted libvirtd forgets some of it. */
  readonly exported?: readonly ExportedDisk[] | undefined;
}

interface BeginOptions {
  readonly level: Level;
  readonly format: ImageFormat;
  readonly disksAlone?: boolean | undefined;
  /** Mountpoints in the guest that are frozen while the job begins; empty: all; undefined: none. */
  readonly freeze?: readonly string[] | undefined;
  /** Called once libvirt is asked to begin the job, which takes it 0.1 s. It must not throw. */
  readonly meanwhile?: (() => void) | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** The server that the job is asked to start. */
export function serverOf(
  folder: JobFolder,
  { server }: { readonly server?: TcpServer | undefined },
): BackupServer {
  return server ?? { transport: "unix", socket: folder.socket, tls: false };
}

export function scratchSettings(
  { domain, ssh }: Guest,
  folder: JobFolder,
  disks: readonly GuestDisk[],
  options: {
    /** Bytes that must stay free. */
    readonly scratchReserve?: number | undefined;
    readonly onWarning?: ((message: string) => void) | undefined;
  },
): ScratchSettings {
  const { scratchReserve: reserve, onWarning } = options;
  const remedy =
    "Name a folder with more room (--scratch), take the backup when the guest writes less, or make it shorter: a faster target, no --limit-rate";
  // For those on another host there are thresholds.
  const files = ssh ? [] : disks.map(({ name }) => folder.scratch(name));
  return { domain: domain.name, files, reserve, remedy, onWarning };
}

/**
 * Begins the job and its checkpoint, both of the same moment. If libvirt finds a disk's bitmap broken, this
 * tries again with another base for the disk, or with none.
 */
export async function begin(
  guest: Guest,
  { disks, forecast }: { readonly disks: readonly GuestDisk[]; readonly forecast: Forecast },
  {
    folder,
    made,
    server,
  }: {
    readonly folder: JobFolder;
    /**
     * Receives the checkpoint. Undefined: none is made, and of an increment only disks that have a base take
     * part.
     */
    readonly made: Made | undefined;
    readonly server: BackupServer;
  },
  options: BeginOptions,
): Promise<BegunJob> {
  const { domain, repository, libvirt } = guest;
  const broken = new Map(forecast.broken);
  let known = disks;
  for (;;) {
    const plans = await planGuest(guest, known, { ...options, broken, proven: forecast.proven });
    refuseNoBase(domain.name, plans, options.level);
    const keeps = made && plans.some(({ bitmap }) => bitmap);
    const checkpoint = keeps ? checkpointName(repository.id, new Date()) : undefined;
    options.signal?.throwIfAborted();
    if (made && checkpoint !== undefined) {
      await made.record.add(checkpoint);
      made.names.push(checkpoint);
    }
    try {
      // Not interrupted by the signal: not waiting for its answer would not stop what libvirt has begun.
      const steady = { ...guest, libvirt: libvirt.withSignal(undefined) };
      await whileFrozen(steady, folder, options.freeze, () =>
        beginJob(
          steady,
          { plans: made ? plans : readable(plans, options.level), checkpoint, server },
          folder,
          options.meanwhile,
        ),
      );
    } catch (error) {
      const old = await withOldQcow2(error, known, guest.ssh ? versionThere(guest.ssh) : versionHere);
      if (old) {
        known = old;
        continue;
      }
      const bitmap = brokenBitmap(error, plans, broken);
      if (bitmap === undefined) throw error;
      broken.set(bitmap, LOST);
      continue;
    }
    const opening = openRunningJob({ libvirt, domain });
    if (checkpoint === undefined) return { job: await opening, plans, checkpoint: null };
    const [job, created] = await together(opening, libvirt.checkpointXml(domain, checkpoint));
    const { creationTime } = parseCheckpoint(created);
    return { job, plans, checkpoint: { name: checkpoint, creationTime } };
  }
}

/**
 * Without a checkpoint nothing keeps bitmaps; where bases are to be compared, a disk without one is left out.
 */
function readable(plans: readonly DiskPlan[], level: Level): readonly DiskPlan[] {
  return plans.filter(({ base }) => base || level === "full").map((plan) => ({ ...plan, bitmap: false }));
}

async function beginJob(
  { libvirt, domain }: Guest,
  wanted: {
    readonly plans: readonly DiskPlan[];
    readonly checkpoint: string | undefined;
    readonly server: BackupServer;
  },
  folder: JobFolder,
  meanwhile: (() => void) | undefined,
): Promise<void> {
  const { plans, checkpoint, server } = wanted;
  const request: JobRequest = {
    server,
    disks: domain.disks.map(({ target: name }) => {
      const planned = plans.find((each) => each.name === name);
      if (!planned) return { name };
      return {
        name,
        take: { scratch: folder.scratch(name), base: planned.base?.checkpoint, bitmap: planned.bitmap },
      };
    }),
  };
  const checkpointXml = checkpoint === undefined ? undefined : formatCheckpoint(request, checkpoint);
  const beginning = libvirt.beginBackup(domain, formatBackup(request), checkpointXml);
  meanwhile?.();
  await beginning;
}

/**
 * The bitmap that libvirt found broken, if that is why the job could not begin: libvirt 9 says `checkpoint
 * inconsistent: missing or broken bitmap 'CHECKPOINT' for disk 'DISK'`, in the language of its host.
 * @param known those that were found before
 */
function brokenBitmap(
  error: unknown,
  plans: readonly DiskPlan[],
  known: ReadonlyMap<string, string>,
): string | undefined {
  if (!hasCode(error, "E_LIBVIRT_REFUSED")) return undefined;
  if (errorNumberOf(error) !== NUMBER.checkpointInconsistent) return undefined;
  const said = saidIn(error) ?? "";
  return plans
    .flatMap(({ name, base }) => {
      const isMeant = base && isNamedIn(said, name) && isNamedIn(said, base.checkpoint);
      return isMeant ? [bitmapOf(name, base.checkpoint)] : [];
    })
    .find((bitmap) => !known.has(bitmap));
}
