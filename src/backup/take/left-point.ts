import { isDeepStrictEqual } from "node:util";
import { hasCode } from "../base/errors.js";
import type { LeftJob } from "../guest/claim.js";
import type { Guest } from "../guest/guest.js";
import type { JobFolder } from "../guest/job-folder.js";
import type { DiskPlan, GuestDisk } from "../guest/plan-disk.js";
import { refuseShortScratch } from "../guest/scratch-guard.js";
import type { HeldFolder } from "../host/held-folder.js";
import { parseCheckpoint } from "../libvirt/checkpoint-xml.js";
import { type BackupJob, exportedDisks } from "../libvirt/job-xml.js";
import { openRunningJob } from "../libvirt/running-job.js";
import { canBeSameJob, isUnmistakable } from "../libvirt/same-job.js";
import { LeftJournal } from "../pull/left-journal.js";
import { domainFolder } from "../repository/domain-folder.js";
import { damageOf } from "../repository/kept-files.js";
import { isPartialPoint } from "../repository/leftovers.js";
import type { Manifest } from "../repository/manifest.js";
import { partialName, pointNamesIn } from "../repository/pending-point.js";
import type { BackupOptions } from "./backup-options.js";
import { type Begun, scratchSettings } from "./begin-job.js";
import { type BegunNote, readNote } from "./begun-note.js";
import { journalName, type TakePointOptions } from "./take-options.js";

type Resumable = NonNullable<TakePointOptions["resumable"]>;

/** A point that a killed run has begun, and its job, which still runs. */
export interface LeftPoint {
  readonly begun: Begun;
  readonly note: BegunNote;
}

/** What a note says of the job; everything that has to be the same when another run goes on. */
interface About {
  readonly settings: object;
  readonly run: number | null;
  readonly uuid: string;
  readonly job: BackupJob;
  readonly checkpoint: Manifest["checkpoint"];
  readonly plans: readonly {
    readonly name: string;
    readonly bitmap: boolean;
    readonly base: { readonly checkpoint: string; readonly parent: string } | null;
    readonly reason: string | null;
  }[];
}

/** What a later run needs to go on with the point of this job; undefined if it can't. */
export async function resumableOf(
  { domain }: Guest,
  { job, plans, checkpoint }: Begun,
  {
    folder,
    left,
    ...options
  }: Pick<BackupOptions, keyof Settings> & {
    readonly folder: JobFolder;
    readonly left: LeftPoint | undefined;
  },
): Promise<Resumable | undefined> {
  const key = options.digests === undefined ? undefined : await folder.secret();
  if (key === undefined) return undefined;
  const about: About = {
    settings: settingsOf(
      options,
      plans.map(({ name }) => name),
    ),
    run: domain.id ?? null,
    uuid: domain.uuid,
    job: left ? (left.note.about as unknown as About).job : job.job,
    checkpoint,
    plans: plans.map(({ name, bitmap, base, reason = null }) => ({
      name,
      bitmap,
      base: base ? { checkpoint: base.checkpoint, parent: base.parent.id } : null,
      reason,
    })),
  };
  return { key, about: about as unknown as Record<string, unknown>, begun: left?.note };
}

/**
 * Looks whether the job and the partial point that a killed run has left belong together, and whether this run
 * would have begun the same. Changes nothing.
 *
 * @returns undefined if not: then both have to be cleared away
 * @throws what libvirt and the file system throw
 */
export async function findLeftPoint(
  guest: Guest,
  { job: found, folder, points }: LeftJob,
  disks: readonly GuestDisk[],
  options: BackupOptions,
): Promise<LeftPoint | undefined> {
  const { domain, libvirt } = guest;
  if (options.resume === false || options.digests === undefined || domain.id === undefined) return undefined;
  const key = await folder.secret();
  if (key === undefined || (await folder.isMarkedFrozen(domain))) return undefined;
  const note = await noteIn(points, key);
  if (note === undefined) return undefined;
  const about = note.about as unknown as About;
  const names = disks.map(({ name }) => name);
  const isSame =
    about.run === domain.id &&
    about.uuid === domain.uuid &&
    isDeepStrictEqual(about.settings, JSON.parse(JSON.stringify(settingsOf(options, names)))) &&
    isSameJob(found, about.job);
  if (!isSame || !hasRoom(guest, folder, disks, options)) return undefined;
  const plans = await plansOf(guest, about);
  if (plans === undefined || !(await hasCheckpoint(guest, about))) return undefined;
  const job = await openRunningJob({ libvirt, domain });
  if (!isSameJob(job.job, about.job)) return undefined;
  return { begun: { job, plans, checkpoint: about.checkpoint, exported: exportedDisks(about.job) }, note };
}

/** The note of the partial point that this key has sealed, if the point's files fit it and it is the newest. */
async function noteIn(points: HeldFolder, key: Buffer): Promise<BegunNote | undefined> {
  for (const entry of await points.entries()) {
    if (!entry.isDirectory() || !isPartialPoint(entry.name)) continue;
    await using partial = await points.folder(entry.name);
    if (!partial) continue;
    const note = await readNote(partial, key);
    if (note === undefined || partialName(note.id) !== entry.name) continue;
    const isNewest = (await pointNamesIn(points)).every((id) => id < note.id);
    return isNewest && (await isWhole(partial, key, note)) ? note : undefined;
  }
  return undefined;
}

/** Whether the files beside the disks are there, and the journal of a disk: else nothing would be gained. */
async function isWhole(partial: HeldFolder, key: Buffer, { kept, about }: BegunNote): Promise<boolean> {
  for (const file of kept.files ?? []) if ((await damageOf(partial, file)) !== undefined) return false;
  let hasJournal = false;
  for (const { name } of (about as unknown as About).plans) {
    const left = await LeftJournal.open({ path: partial.at(journalName(name)), key });
    await left?.close();
    hasJournal ||= left !== undefined;
  }
  return hasJournal;
}

/** A job of an old libvirt can't be told from another one with the same description. */
function isSameJob(now: BackupJob, then: BackupJob): boolean {
  return isUnmistakable(now) && canBeSameJob(JSON.parse(JSON.stringify(now)), then);
}

/** Whether the scratch guard would let the job go on. */
function hasRoom(
  guest: Guest,
  folder: JobFolder,
  disks: readonly GuestDisk[],
  options: BackupOptions,
): boolean {
  try {
    refuseShortScratch(scratchSettings(guest, folder, disks, { ...options, onWarning: undefined }));
    return true;
  } catch (error) {
    if (hasCode(error, "E_SCRATCH_FULL")) return false;
    throw error;
  }
}

/** Undefined if a parent is not there any longer. */
async function plansOf(
  { repository, domain }: Guest,
  { plans }: About,
): Promise<readonly DiskPlan[] | undefined> {
  const home = await domainFolder(repository, domain);
  const ids = await repository.pointIds(home);
  if (plans.some(({ base }) => base && !ids.includes(base.parent))) return undefined;
  return await Promise.all(
    plans.map(
      async ({ name, bitmap, base, reason }): Promise<DiskPlan> => ({
        name,
        bitmap,
        base: base
          ? { checkpoint: base.checkpoint, parent: await repository.point(home, base.parent) }
          : undefined,
        reason: reason ?? undefined,
      }),
    ),
  );
}

async function hasCheckpoint({ libvirt, domain }: Guest, { checkpoint }: About): Promise<boolean> {
  if (checkpoint === null) return true;
  if (!(await libvirt.checkpointNames(domain)).includes(checkpoint.name)) return false;
  const now = parseCheckpoint(await libvirt.checkpointXml(domain, checkpoint.name));
  return now.creationTime === checkpoint.creationTime;
}

type Settings = Pick<
  BackupOptions,
  "level" | "format" | "compress" | "digests" | "server" | "freeze" | "tool"
>;

/** What a run was asked for, as far as it shows in the point or the job. */
function settingsOf(
  { level, format, compress, digests, server, freeze, tool }: Settings,
  disks: readonly string[],
): object {
  const all = { level, format, compress, digests, server, freeze, tool };
  return { ...all, disks: [...disks].sort() };
}
