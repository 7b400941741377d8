/** What may stand in a backup's way on the guest, and the clearing away of what is our own. */
import { BackupError, PreconditionError } from "../base/errors.js";
import type { Ssh } from "../host/ssh.js";
import { checkpointPrefix, deleteCheckpoint } from "../libvirt/checkpoints.js";
import type { DomainDefinition } from "../libvirt/domain-xml.js";
import { freeze, thaw } from "../libvirt/freeze.js";
import { type BackupJob, exportedDisks, parseBackupJob } from "../libvirt/job-xml.js";
import { isErrorOf, isJobGone, type Virsh } from "../libvirt/virsh.js";
import type { Repository } from "../repository/repository.js";
import { JobFolder, type JobFolderKey } from "./job-folder.js";
import { endServersIn } from "./qemu-nbd.js";

/** One repository's view of one domain. */
export interface Guest {
  readonly virsh: Virsh;
  readonly domain: DomainDefinition;
  readonly repository: Repository;
  /** To the host where it runs, if that is another one. */
  readonly ssh: Ssh | undefined;
}

/** Where a dead backup of ours worked, and its job if that still runs. */
export interface Left {
  readonly folders: readonly JobFolder[];
  readonly job: BackupJob | undefined;
}

/**
 * Refuses to go on where another job runs, or another backup to this repository, and tells where a dead one of ours
 * worked: here, or in the folder that its job names.
 *
 * @throws {PreconditionError} `E_BACKUP_RUNNING`, `E_FOREIGN_JOB`, `E_DOMAIN_BUSY`, `E_PUSH_MODE`
 */
export async function findLeft(guest: Guest, here: JobFolder): Promise<Left> {
  const { virsh, domain } = guest;
  await refuseLivingOwner(here, domain);
  const job = await runningBackup(virsh, domain);
  if (!job) return { folders: [here], job };
  const theirs = JobFolder.ofJob(job, keyOf(guest), guest.ssh);
  if (!theirs) throw foreignJob(domain, job);
  if (theirs.path === here.path) return { folders: [here], job };
  await refuseLivingOwner(theirs, domain);
  return { folders: [here, theirs], job };
}

/** Takes the folder over from whoever died in it, as the only one who does so. */
export async function claimFolder(guest: Guest, folder: JobFolder, signal?: AbortSignal): Promise<void> {
  // Before the lock is waited for: a backup under way holds it as long as it pulls.
  await refuseLivingOwner(folder, guest.domain);
  const claim = async (): Promise<void> => {
    const { folders, job } = await findLeft(guest, folder);
    // Nobody else of ours begins one meanwhile.
    for (const left of folders) await clearLeft(guest, left, { jobMayRun: job !== undefined });
    await folder.claim(guest.domain.qemuUser);
  };
  await guest.repository.writing(guest.domain.name, claim, signal);
}

/**
 * Refuses to go on where any job runs: without a repository none is ours.
 * @throws {PreconditionError} `E_FOREIGN_JOB`, `E_DOMAIN_BUSY`, `E_PUSH_MODE`
 */
export async function refuseAnyJob({ virsh, domain }: Pick<Guest, "virsh" | "domain">): Promise<void> {
  const job = await runningBackup(virsh, domain);
  if (job) throw foreignJob(domain, job);
}

/** What tells the folders of this repository and domain from all others. */
export function keyOf({ repository, domain }: Guest): JobFolderKey {
  return { repositoryId: repository.id, domainUuid: domain.uuid };
}

/**
 * Thaws the guest if it was left frozen, ends the job that works in `folder`, if one does, waits until it is gone, ends
 * the servers of a stopped domain's images that are left there, and removes the folder. No NBD client of ours may be connected any more: QEMU 7.2 can hang then, with the guest.
 */
export async function clearFolder(guest: Guest, folder: JobFolder): Promise<void> {
  await clearLeft(guest, folder, { jobMayRun: true });
}

async function clearLeft(
  { virsh, domain }: Guest,
  folder: JobFolder,
  { jobMayRun }: { readonly jobMayRun: boolean },
): Promise<void> {
  try {
    if (await folder.isMarkedFrozen()) await thawGuest({ virsh, domain }, folder);
  } finally {
    const job = jobMayRun ? await runningBackup(virsh, domain) : undefined;
    const worksThere =
      job && exportedDisks(job).some(({ scratch }) => scratch?.path.startsWith(`${folder.path}/`));
    if (worksThere) {
      await folder.sever();
      await virsh.abortJob(domain, { isKnown: true });
    }
  }
  await endServersIn(folder.path);
  await folder.remove();
}

/**
 * Runs `work` while the guest's file systems are frozen; they are thawed whatever comes.
 *
 * @param mountpoints in the guest; empty: all; left out: nothing is frozen
 * @throws {PreconditionError} no agent answers in the guest
 */
export async function whileFrozen(
  guest: Pick<Guest, "virsh" | "domain">,
  folder: JobFolder,
  mountpoints: readonly string[] | undefined,
  work: () => Promise<void>,
): Promise<void> {
  if (mountpoints === undefined) return await work();
  await folder.markFrozen();
  try {
    await freeze(guest.virsh, guest.domain, mountpoints);
  } catch (error) {
    // Where there is no agent nothing is frozen; otherwise some file systems may be.
    if (isErrorOf(error, "E_NO_AGENT")) await folder.unmarkFrozen();
    else await thawGuest(guest, folder);
    throw error;
  }
  try {
    await work();
  } finally {
    await thawGuest(guest, folder);
  }
}

/** @throws {BackupError} `E_STILL_FROZEN` */
async function thawGuest(
  { virsh, domain }: Pick<Guest, "virsh" | "domain">,
  folder: JobFolder,
): Promise<void> {
  try {
    await thaw(virsh, domain);
  } catch (cause) {
    // A guest that is off is not frozen, whatever it was before.
    if (!isJobGone(cause)) {
      const message = `file systems of ${domain.name} may still be frozen, thawing failed (${messageOf(cause)}): run \`virsh domfsthaw ${domain.name}\` now`;
      throw new BackupError("E_STILL_FROZEN", message, { cause, details: { domain: domain.name } });
    }
  }
  await folder.unmarkFrozen();
}

/**
 * Deletes checkpoints of ours, as far as they may go. Others' are never touched.
 * @returns the names of those that went, and why others did not
 */
export async function retireCheckpoints(
  { virsh, domain, repository }: Guest,
  mayGo: (name: string) => boolean,
): Promise<{ retired: string[]; failed: string[] }> {
  const prefix = checkpointPrefix(repository.id);
  const retired: string[] = [];
  const failed: string[] = [];
  for (const name of await virsh.checkpointNames(domain)) {
    if (!name.startsWith(prefix) || !mayGo(name)) continue;
    try {
      await deleteCheckpoint(virsh, domain, name);
      retired.push(name);
    } catch (error) {
      failed.push(`checkpoint ${name} could not be deleted: ${messageOf(error)}`);
    }
  }
  return { retired, failed };
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
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

/** The backup job that runs on the domain, if one does; of a domain that is off none does. */
export async function runningBackup(virsh: Virsh, domain: DomainDefinition): Promise<BackupJob | undefined> {
  const { name } = domain;
  const { info, backupXml } = await virsh.runningJob(domain);
  if (info?.active && info.operation !== "backup") {
    throw new PreconditionError(
      "E_DOMAIN_BUSY",
      `another job runs on ${name} (${info.operation}): wait for its end. \`virsh domjobinfo ${name}\` shows it`,
      { details: { domain: name } },
    );
  }
  return backupXml === undefined ? undefined : parseBackupJob(backupXml);
}

/** Names what can be seen of the job, so that its owner can be found. */
function foreignJob(domain: DomainDefinition, job: BackupJob): PreconditionError {
  const { server } = job;
  const paths = exportedDisks(job).flatMap(({ scratch }) => (scratch ? [scratch.path] : []));
  const where = server.transport === "unix" ? `socket ${server.socket}` : `port ${server.port}`;
  const seen = `${where}${paths.length > 0 ? `, scratch ${paths.join(", ")}` : ""}`;
  return new PreconditionError(
    "E_FOREIGN_JOB",
    `a backup job that this repository's backups did not begin runs on ${domain.name}: it seems to be ${ownerOf(seen)} (${seen}). Wait for its end; if nobody reads from it any more, \`virsh domjobabort ${domain.name}\``,
    { details: { domain: domain.name, server, scratch: paths } },
  );
}

function ownerOf(seen: string): string {
  if (/\/nbdpull-[0-9a-f]{8}-[0-9a-f]{8}\//.test(seen)) return "nbdpull's, of another repository or domain";
  if (/virtnbdbackup/.test(seen)) return "virtnbdbackup's";
  return "somebody else's, begun by virsh or by a backup program";
}
