import { isDeepStrictEqual } from "node:util";
import { BackupError, hasCode, messageOf } from "../base/errors.js";
import { together } from "../base/in-parallel.js";
import { SoundBases } from "../chain/sound-bases.js";
import type { LeftJob } from "../guest/claim.js";
import type { Guest } from "../guest/guest.js";
import type { JobFolder } from "../guest/job-folder.js";
import { judgeScratch } from "../guest/judge-scratch.js";
import type { DiskPlan, GuestDisk } from "../guest/plan-disk.js";
import { refuseShortScratch } from "../guest/scratch-guard.js";
import { freeBytesThere } from "../guest/scratch-rooms.js";
import type { HeldFolder } from "../host/held-folder.js";
import { parseCheckpoint } from "../libvirt/documents/checkpoint-xml.js";
import { type BackupJob, exportedDisks } from "../libvirt/documents/job-xml.js";
import { openRunningJob } from "../libvirt/job/running-job.js";
import { canBeSameJob, isUnmistakable } from "../libvirt/job/same-job.js";
import { LeftJournal } from "../pull/left-journal.js";
import { domainFolder } from "../repository/domain-folder.js";
import { damageOf } from "../repository/kept-files.js";
import { isPartialPoint } from "../repository/leftovers.js";
import type { Manifest } from "../repository/manifest.js";
import { partialName, pointNamesIn } from "../repository/pending-point.js";
import type { BackupOptions } from "./backup-options.js";
import { type BegunJob, scratchSettings } from "./begin-job.js";
import { type BegunNote, readNote } from "./begun-note.js";
import { journalName, type TakePointOptions } from "./take-options.js";

type Resumable = NonNullable<TakePointOptions["resumable"]>;

/** A point that a killed run has begun, and its job, which still runs. */
interface LeftPoint {
  readonly begun: BegunJob;
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
  { domain, repository }: Guest,
  { job, plans, checkpoint }: BegunJob,
  {
    folder,
    left,
    ...options
  }: Pick<BackupOptions, keyof Settings> & {
    readonly folder: JobFolder;
    readonly left: LeftPoint | undefined;
  },
): Promise<Resumable | undefined> {
  // What was uploaded of an image can't be read before all of it was.
  const canResume = options.digests !== undefined && !repository.isInStore;
  const key = canResume ? await folder.secret() : undefined;
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

/** A point that a killed run has begun, and that can't be gone on with. */
interface LostPoint {
  readonly because: string;
  /** The moment of its job; undefined: it could not be read. */
  readonly createdAt: string | undefined;
}

/**
 * Looks whether the job and the partial point that a killed run has left belong together, and whether this
 * run would have begun the same. Changes nothing. If not, both have to be cleared away, and so they have if
 * they can't be judged: every later run would fail as this one, and the job would run on.
 *
 * @returns undefined: next to nothing is lost, or the user wants it so
 * @throws the signal's reason
 */
export async function judgeLeftPoint(
  guest: Guest,
  left: LeftJob,
  disks: readonly GuestDisk[],
  options: BackupOptions,
): Promise<LeftPoint | LostPoint | undefined> {
  try {
    return await judge(guest, left, disks, options);
  } catch (error) {
    options.signal?.throwIfAborted();
    return { because: `it can't be judged (${messageOf(error)})`, createdAt: undefined };
  }
}

async function judge(
  guest: Guest,
  { job: found, folder, points }: LeftJob,
  disks: readonly GuestDisk[],
  options: BackupOptions,
): Promise<LeftPoint | LostPoint | undefined> {
  const { domain, libvirt } = guest;
  const secret = options.resume === false ? undefined : await folder.secret();
  const note = secret && (await noteIn(points, secret));
  if (secret === undefined || note === undefined) return undefined;
  if (!(await hasJournal(points, secret, note))) return undefined;
  const about = note.about as unknown as About;
  const not = (because: string): LostPoint => ({ because, createdAt: note.createdAt });
  const other = differing(
    about.settings,
    settingsOf(
      options,
      disks.map(({ name }) => name),
    ),
  );
  if (other.length > 0) return not(`other ${other.join(", ")}`);
  if (about.run !== domain.id || about.uuid !== domain.uuid) return not("the domain was started anew");
  if (!isSameJob(found, about.job)) return not("the job that runs is another one");
  if (await folder.isMarkedFrozen(domain)) return not("the guest may have been left frozen");
  if ((await pointNamesIn(points)).some((id) => id >= note.id)) return not("there is a newer point");
  const damage = await damageIn(points, note);
  if (damage !== undefined) return not(damage);
  if (!(await hasRoom(guest, folder, disks, options)))
    return not("too little room is left for scratch files");
  const plans = await plansOf(guest, about);
  if (typeof plans === "string") return not(plans);
  if (!(await hasCheckpoint(guest, about))) return not("its checkpoint is gone");
  const job = await openRunningJob({ libvirt, domain });
  if (!isSameJob(job.job, about.job)) return not("the job that runs is another one");
  try {
    await job.assertAlive({ onWait: options.onWarning });
  } catch (error) {
    if (hasCode(error, "E_JOB_ENDED")) return not("QEMU has ended its job, and libvirt has not noticed yet");
    throw error;
  }
  const { checkpoint } = about;
  return { begun: { job, plans, checkpoint, exported: exportedDisks(about.job) }, note };
}

/** The note of the partial point that this secret has sealed. */
async function noteIn(points: HeldFolder, secret: Buffer): Promise<BegunNote | undefined> {
  for (const entry of await points.entries()) {
    if (!entry.isDirectory() || !isPartialPoint(entry.name)) continue;
    await using partial = await points.folder(entry.name);
    const note = partial && (await readNote(partial, secret));
    if (note !== undefined && partialName(note.id) === entry.name) return note;
  }
  return undefined;
}

/** Whether a disk has its journal, which comes some seconds after the first data: else nothing is gained. */
async function hasJournal(points: HeldFolder, secret: Buffer, { id, about }: BegunNote): Promise<boolean> {
  await using partial = await points.folder(partialName(id));
  for (const { name } of (about as unknown as About).plans) {
    const path = partial?.at(journalName(name));
    const left = path === undefined ? undefined : await LeftJournal.open({ path, key: secret });
    await left?.close();
    if (left !== undefined) return true;
  }
  return false;
}

/** Undefined if the files beside the disks are as they were. */
async function damageIn(points: HeldFolder, { id, kept }: BegunNote): Promise<string | undefined> {
  await using partial = await points.folder(partialName(id));
  if (!partial) return "its folder is gone";
  for (const file of kept.files ?? []) {
    if ((await damageOf(partial, file)) !== undefined) return `its ${file.file} was changed`;
  }
  return undefined;
}

/** A job of an old libvirt can't be told from another one with the same description. */
function isSameJob(now: BackupJob, then: BackupJob): boolean {
  return isUnmistakable(now) && canBeSameJob(JSON.parse(JSON.stringify(now)), then);
}

/** Whether the scratch guard would let the job go on. */
async function hasRoom(
  guest: Guest,
  folder: JobFolder,
  disks: readonly GuestDisk[],
  options: BackupOptions,
): Promise<boolean> {
  if (guest.ssh) {
    const [used, left] = await together(folder.usedBytes(), freeBytesThere(guest.ssh, folder.path));
    const now = { time: performance.now(), used, left };
    return judgeScratch(used + left, [now], options.scratchReserve).kind !== "short";
  }
  try {
    refuseShortScratch(scratchSettings(guest, folder, disks, { ...options, onWarning: undefined }));
    return true;
  } catch (error) {
    if (hasCode(error, "E_SCRATCH_FULL")) return false;
    throw error;
  }
}

/** Why the parents can't be built on, if so. */
async function plansOf(
  { repository, domain }: Guest,
  { plans }: About,
): Promise<readonly DiskPlan[] | string> {
  const home = await domainFolder(repository, domain);
  const points = await repository.points(home, () => undefined);
  const bases = new SoundBases(repository, home, { points });
  const found: DiskPlan[] = [];
  for (const { name, bitmap, base, reason } of plans) {
    const plan = { name, bitmap, reason: reason ?? undefined };
    if (!base) {
      found.push({ ...plan, base: undefined });
      continue;
    }
    try {
      const parent = await repository.point(home, base.parent);
      const elsewhere = await bases.prove(parent, name);
      if (elsewhere !== undefined) return elsewhere;
      found.push({ ...plan, base: { checkpoint: base.checkpoint, parent } });
    } catch (error) {
      if (!(error instanceof BackupError)) throw error;
      return `the parent of ${name} can't be built on (${error.message})`;
    }
  }
  return found;
}

async function hasCheckpoint({ libvirt, domain }: Guest, { checkpoint }: About): Promise<boolean> {
  if (checkpoint === null) return true;
  if (!(await libvirt.checkpointNames(domain)).includes(checkpoint.name)) return false;
  const now = parseCheckpoint(await libvirt.checkpointXml(domain, checkpoint.name));
  return now.creationTime === checkpoint.creationTime;
}

/** The settings' names for users, where they are called otherwise. */
const NAMES: Readonly<Record<string, string>> = {
  compress: "compression",
  server: "--server",
  freeze: "--freeze",
  tool: "version of nbdpull",
};

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

/** The names of the settings that are not the same. */
function differing(then: object, now: object): string[] {
  const [one, other] = [then, JSON.parse(JSON.stringify(now))] as Record<string, unknown>[];
  const names = Object.keys({ ...one, ...other });
  return names
    .filter((name) => !isDeepStrictEqual(one?.[name], other?.[name]))
    .map((name) => NAMES[name] ?? name);
}
