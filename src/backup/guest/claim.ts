import { setTimeout as sleep } from "node:timers/promises";
import { anySignal } from "../../nbd/index.js";
import { messageOf, PreconditionError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { HeldFolder } from "../host/held-folder.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import { type BackupJob, exportedDisks, parseBackupJob } from "../libvirt/documents/job-xml.js";
import { clientsMustStay, patienceToEnd } from "../libvirt/fragile-disks.js";
import { busyMessage, JobEnd, jobStuck } from "../libvirt/job-end.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { isHeldByEvent } from "../libvirt/libvirt-errors.js";
import { domainFolder } from "../repository/domain-folder.js";
import { removeLeftovers } from "../repository/leftovers.js";
import { thawGuest } from "./freeze.js";
import type { Guest } from "./guest.js";
import { keyOf } from "./guest.js";
import type { JobClients } from "./job-clients.js";
import { JobFolder } from "./job-folder.js";
import { endServersIn } from "./qemu-nbd.js";

/** An abort that goes well takes libvirt some 0.2 s. */
const STUCK_AFTER_MS = 3000;
/** After a line could not be cut. */
const CUT_AGAIN_MS = 10_000;
/** The far end of a process that was killed just now ends within a second. */
const LOOKS_AT_LINE = 5;
const LINE_LOOK_MS = 500;

/** What a dead backup of this repository may have left: its folders, and its job if that still runs. */
interface Left {
  readonly folders: readonly JobFolder[];
  readonly job: BackupJob | undefined;
  /** A backup job begins or ends, and libvirt has no description of it: whose it is, is not known. */
  readonly isUnclear: boolean;
}

/**
 * Finds what a dead backup of this repository left: the folder `here`, and the folder that its job names.
 * Throws if somebody else's job runs on the domain, or another backup to this repository.
 *
 * @throws {PreconditionError} `E_BACKUP_RUNNING`, `E_FOREIGN_JOB`, `E_DOMAIN_BUSY`, `E_PUSH_MODE`
 */
export async function findLeft(guest: Guest, here: JobFolder): Promise<Left> {
  const { libvirt, domain } = guest;
  await refuseLivingOwner(here, domain);
  const { job, isUnclear } = await lookForBackup(libvirt, domain).catch(async (error: unknown) => {
    throw isHeldByEvent(error) ? deadLineError(error, await here.line().catch(() => undefined)) : error;
  });
  if (!job) return { folders: [here], job, isUnclear };
  const theirs = JobFolder.ofJob(job, keyOf(guest), guest.ssh);
  if (!theirs) throw foreignJob(domain, job);
  if (theirs.path === here.path) return { folders: [here], job, isUnclear };
  await refuseLivingOwner(theirs, domain);
  return { folders: [here, theirs], job, isUnclear };
}

/** As `findLeft`, but waits until libvirt can tell of a job that begins or ends. */
async function findClearly(
  guest: Guest,
  here: JobFolder,
  onWarning: ClearOptions["onWarning"],
): Promise<Omit<Left, "isUnclear">> {
  for (;;) {
    const left = await findLeft(guest, here);
    if (!left.isUnclear) return left;
    await jobToEnd(guest, onWarning);
  }
}

interface ClearOptions {
  readonly signal?: AbortSignal | undefined;
  /** Receives a message if the job takes long to end. */
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** A job that a dead backup of this repository has left. */
export interface LeftJob {
  readonly job: BackupJob;
  /** The folder that it works in. */
  readonly folder: JobFolder;
  /** The domain's folder in the repository, with the partial point. It is open until the claim ends. */
  readonly points: HeldFolder;
}

interface ClaimOptions<T> extends ClearOptions {
  /** Judges whether to go on with what a dead backup left; undefined: it is removed, as it is by default. */
  readonly goOn?: ((left: LeftJob) => Promise<T | undefined>) | undefined;
}

/**
 * Removes what a dead backup left and creates the folder anew, while holding the domain's lock; or takes over
 * the folder of its job, and leaves the partial point, if `goOn` says so.
 * @returns the folder, and what `goOn` gave
 */
export async function claimFolder<T = undefined>(
  guest: Guest,
  folder: JobFolder,
  { signal, onWarning, goOn }: ClaimOptions<T>,
): Promise<{ readonly folder: JobFolder; readonly left: T | undefined }> {
  // Checked before waiting for the lock, because a running backup holds it as long as it pulls.
  await refuseLivingOwner(folder, guest.domain);
  const claim = async (points: HeldFolder | undefined) => {
    const { folders, job } = await findClearly(guest, folder, onWarning);
    const theirs = folders.at(-1) ?? folder;
    let left: T | undefined;
    if (goOn && job && points) {
      // A line that may not be cut while the job runs is cut only where the job is ended as a dead backup's.
      if (!clientsMustStay(guest.domain) || (await endsByItself(theirs))) {
        left = await goOn({ job, folder: theirs, points });
      } else {
        const message = "a killed backup's connection to the hypervisor is still there";
        onWarning?.(`${message}: what there is of its point is not continued`);
      }
    }
    if (left !== undefined) {
      // As below. A client that is connected still would only disturb.
      if (!clientsMustStay(guest.domain)) await theirs.sever();
      await theirs.takeOver();
      return { folder: theirs, left };
    }
    if (points) await removeLeftovers(points);
    // The lock keeps other backups to this repository from beginning a job meanwhile.
    for (const left of folders) {
      // QEMU 7.2 hangs while a job is ended under a client that reads no more, but see `JobClients`.
      if (!clientsMustStay(guest.domain)) await left.sever();
      await endJobIn(guest, left, { jobMayRun: job !== undefined, isDead: true, onWarning });
      await removeFolder(left);
    }
    // Of a domain that is off, nobody else gets into the folder before it is lent to the tools.
    const user = guest.domain.id === undefined ? undefined : guest.domain.qemuUser;
    await folder.claim(user);
    return { folder, left: undefined };
  };
  const home = await domainFolder(guest.repository, guest.domain);
  const { repository } = guest;
  // What was uploaded of a point can't be gone on with, and was removed when the lease was taken.
  if (repository.isInStore) return await repository.writingInStore(home, () => claim(undefined), signal);
  return await repository.writing(
    home,
    (held) => claim(held.folder),
    signal,
    async () => undefined,
  );
}

/**
 * Throws if any job runs on the domain, or begins or ends: without a repository no job is ours.
 * @throws {PreconditionError} `E_FOREIGN_JOB`, `E_DOMAIN_BUSY`, `E_PUSH_MODE`
 */
export async function refuseAnyJob({ libvirt, domain }: Pick<Guest, "libvirt" | "domain">): Promise<void> {
  const { job, isUnclear } = await lookForBackup(libvirt, domain);
  if (job) throw foreignJob(domain, job);
  if (isUnclear) throw busyWith(domain, "a backup job begins or ends");
}

/**
 * Thaws the guest if it was left frozen, ends the job that works in `folder` and waits until it is gone, ends
 * the qemu-nbd servers that were left there, and removes the folder. What can't be removed is left to the
 * next run, also to one of this process.
 *
 * @param options.clients our connections to the job; closed after the job has ended, whether that succeeds or
 *   not
 */
export async function clearFolder(
  guest: Guest,
  folder: JobFolder,
  { onWarning, clients }: Pick<ClearOptions, "onWarning"> & { readonly clients?: JobClients } = {},
): Promise<void> {
  const end = (): Promise<void> => endJobIn(guest, folder, { jobMayRun: true, isDead: false, onWarning });
  try {
    await (clients ? clients.outlive(end) : end());
    await removeFolder(folder);
  } catch (error) {
    await folder.leave().catch(() => undefined);
    throw error;
  }
}

async function endJobIn(
  { libvirt, domain }: Guest,
  folder: JobFolder,
  {
    jobMayRun,
    isDead,
    onWarning,
  }: Pick<ClearOptions, "onWarning"> & {
    readonly jobMayRun: boolean;
    /** The process that began the job is gone, but maybe not its connections. */
    readonly isDead: boolean;
  },
): Promise<void> {
  try {
    if (await folder.isMarkedFrozen(domain)) await thawGuest({ libvirt, domain }, folder);
  } finally {
    // Before the look at the job: what takes long after it would leave time for another program's job.
    const line = jobMayRun && isDead ? await folder.line() : undefined;
    const job = jobMayRun ? await jobToEnd({ libvirt, domain }, onWarning) : undefined;
    const worksThere = (each: BackupJob): boolean =>
      exportedDisks(each).some(({ scratch }) => scratch?.path.startsWith(`${folder.path}/`));
    if (job && worksThere(job)) {
      const isOurs = (backupXml: string): boolean => worksThere(parseBackupJob(backupXml));
      const patient = libvirt.withPatience(patienceToEnd(domain));
      const end: EndOfJob = (onCancelled) =>
        patient.abortJob(domain, { isKnown: true, isOurs, onCancelled, onWait: onWarning });
      await (line === undefined ? end() : cutOffIfStuck(folder, { line, end, onWarning }));
    }
  }
}

/**
 * The backup job that runs. libvirt is asked again while it is away, or too busy to tell, as after a reset of
 * the guest, and while a job begins, or ends, of which it has no description: a beginning that we no longer
 * waited for goes on.
 */
async function jobToEnd(
  { libvirt, domain }: Pick<Guest, "libvirt" | "domain">,
  onWarning: ClearOptions["onWarning"],
): Promise<BackupJob | undefined> {
  // One wait for all: each look is without patience.
  const now = libvirt.withPatience(0);
  using end = new JobEnd({ awayMs: patienceToEnd(domain) }, () => onWarning?.(busyMessage(domain.name)));
  for (;;) {
    const seen = await end.look(() => now.runningJob(domain));
    if (seen?.backupXml !== undefined) return parseBackupJob(seen.backupXml);
    if (seen !== undefined && !isUndescribed(seen)) return undefined;
    if (await end.wait(seen)) continue;
    // It may run, so its clients must not leave it.
    throw end.failure ?? jobStuck(domain.name, end);
  }
}

type EndOfJob = (onCancelled?: (doubted: AbortSignal) => void) => Promise<void>;

/**
 * Waits for the end of a job. An ssh connection that a dead backup left on another host is cut only when the
 * job doesn't end: replies that nobody reads keep QEMU 7.2 from ending it, and its guest stands still. Before
 * libvirt has taken the cancelling, the job runs, and a client that leaves then kills a guest with iothreads.
 * Once this settles nothing is cut any more: the next connection to the domain may be our own.
 */
async function cutOffIfStuck(
  folder: JobFolder,
  {
    line,
    end,
    onWarning,
  }: Pick<ClearOptions, "onWarning"> & { readonly line: string; readonly end: EndOfJob },
): Promise<void> {
  const ended = new AbortController();
  const cuts: Promise<void>[] = [];
  try {
    await end((doubted) => {
      cuts.push(cutOff(folder, { line, signal: anySignal(ended.signal, doubted), onWarning }));
    });
  } catch (error) {
    throw isHeldByEvent(error) ? deadLineError(error, line) : error;
  } finally {
    ended.abort();
    await Promise.all(cuts);
  }
}

/** Whether the line of a dead backup is gone, or ends soon: one whose process was killed just now does. */
async function endsByItself(folder: JobFolder): Promise<boolean> {
  for (let looks = 1; (await folder.line()) !== undefined; looks += 1) {
    if (looks === LOOKS_AT_LINE) return false;
    await sleep(LINE_LOOK_MS);
  }
  return true;
}

/**
 * Adds to libvirt's refusal what may be its cause: it does not say that QEMU hangs, so nothing is cut for it.
 * @param line undefined: the dead backup has left none
 */
function deadLineError(error: unknown, line: string | undefined): unknown {
  if (line === undefined || !(error instanceof PreconditionError)) return error;
  const message =
    `${error.message}. If the guest stands still, its QEMU may wait for the connection that a killed backup left: then, and only then, ` +
    `end process ${line.split(" ", 1)} on the hypervisor, which holds it`;
  return new PreconditionError("E_DOMAIN_BUSY", message, { cause: error, details: error.details });
}

/** Cuts a line, again and again until that succeeds, or until the signal is aborted. Never rejects. */
async function cutOff(
  folder: JobFolder,
  {
    line,
    signal,
    onWarning,
  }: Pick<ClearOptions, "onWarning"> & { readonly line: string; readonly signal: AbortSignal },
): Promise<void> {
  let isTold = false;
  for (let ms = STUCK_AFTER_MS; await passes(ms, signal); ms = CUT_AGAIN_MS) {
    try {
      await folder.sever({ line, signal });
      return;
    } catch (error) {
      if (signal.aborted) return;
      const message =
        `the connection that a killed backup left on the hypervisor could not be cut (${messageOf(error)}): it is tried again. ` +
        `The guest may stand still until process ${line.split(" ", 1)} there, which holds it, is ended`;
      try {
        if (!isTold) onWarning?.(message);
      } catch {
        // Whoever can't be told must not end what ends the job.
      }
      isTold = true;
    }
  }
}

/** @returns false, and at once, if the signal is aborted meanwhile */
async function passes(ms: number, signal: AbortSignal): Promise<boolean> {
  if (signal.aborted) return false;
  await new Promise<void>((resolve) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done, { once: true });
    function done(): void {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
  });
  return !signal.aborted;
}

async function removeFolder(folder: JobFolder): Promise<void> {
  await folder.sever();
  await endServersIn(folder.path);
  await folder.remove();
}

async function refuseLivingOwner(folder: JobFolder, domain: DomainDefinition): Promise<void> {
  const living = await folder.livingOwner();
  if (living === undefined) return;
  throw new PreconditionError(
    "E_BACKUP_RUNNING",
    `${domain.name} is being backed up to this repository already, by ${living}: wait for its end`,
    { details: { domain: domain.name, folder: folder.path } },
  );
}

/**
 * The backup job that runs on the domain, if any, as far as libvirt can tell. No job runs on a domain that is
 * off.
 * @throws {PreconditionError} `E_DOMAIN_BUSY`: a job of another kind runs
 */
export async function runningBackup(
  libvirt: Libvirt,
  domain: DomainDefinition,
): Promise<BackupJob | undefined> {
  return (await lookForBackup(libvirt, domain)).job;
}

async function lookForBackup(
  libvirt: Libvirt,
  domain: DomainDefinition,
): Promise<Pick<Left, "job" | "isUnclear">> {
  const seen = await libvirt.runningJob(domain);
  const { info, backupXml } = seen;
  if (info?.active && info.operation !== "backup")
    throw busyWith(domain, `another job (${info.operation}) runs`);
  const job = backupXml === undefined ? undefined : parseBackupJob(backupXml);
  return { job, isUnclear: isUndescribed(seen) };
}

/** Whether a backup job begins or ends of which libvirt has no description yet, or no longer. */
function isUndescribed({ info, backupXml }: Awaited<ReturnType<Libvirt["runningJob"]>>): boolean {
  return backupXml === undefined && info?.active === true && info.operation === "backup";
}

function busyWith({ name }: DomainDefinition, what: string): PreconditionError {
  return new PreconditionError(
    "E_DOMAIN_BUSY",
    `${what} on ${name}: wait for its end. \`virsh domjobinfo ${domainWord(name)}\` shows it`,
    { details: { domain: name } },
  );
}

/** Names the job's socket or port and its scratch files, so that the user can find its owner. */
function foreignJob(domain: DomainDefinition, job: BackupJob): PreconditionError {
  const { server } = job;
  const paths = exportedDisks(job).flatMap(({ scratch }) => (scratch ? [scratch.path] : []));
  const where = server.transport === "unix" ? `socket ${server.socket}` : `port ${server.port}`;
  const seen = `${where}${paths.length > 0 ? `, scratch ${paths.join(", ")}` : ""}`;
  return new PreconditionError(
    "E_FOREIGN_JOB",
    `a backup job that this repository's backups did not begin runs on ${domain.name}: it seems to be ${ownerOf(seen)} (${seen}). Wait for its end; if nobody reads from it, \`virsh domjobabort ${domainWord(domain.name)}\``,
    { details: { domain: domain.name, server, scratch: paths } },
  );
}

function ownerOf(seen: string): string {
  if (/\/nbdpull-[0-9a-f]{8}-[0-9a-f]{8,12}(-[0-9a-f]{8})?\//.test(seen))
    return "nbdpull's, of another repository or domain";
  if (/virtnbdbackup/.test(seen)) return "virtnbdbackup's";
  return "somebody else's, begun by virsh or by a backup program";
}
