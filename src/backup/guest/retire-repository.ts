import { BackupError, messageOf, PreconditionError, UsageError } from "../base/errors.js";
import { usualStateFolder } from "../host/state-folder.js";
import { checkpointPrefix, deleteCheckpoint } from "../libvirt/checkpoints.js";
import { parseDomain } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Repository } from "../repository/repository.js";
import {
  CheckpointRecord,
  type RecordedRepository,
  recordedRepositories,
  whereItWas,
} from "./checkpoint-record.js";
import { refuseRetiring } from "./refuse-retiring.js";

interface RetireOptions {
  readonly libvirt: Libvirt;
  /** Name, UUID or the number of its run. Undefined: all domains that run. */
  readonly domainName: string | undefined;
  /** The repository's id, or its first eight digits, as the names of its checkpoints have them. */
  readonly repositoryId: string;
  /** A repository that is known to be in use. */
  readonly alive?: Repository | undefined;
  /** Only tell what would be deleted. */
  readonly dryRun: boolean;
  /** Where this host records which checkpoints are whose; default: `usualStateFolder`. */
  readonly stateFolder?: string | undefined;
  /** Receives what this host's record can't tell. */
  readonly onWarning?: ((message: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

interface RetiredCheckpoints {
  readonly domain: string;
  /** Names of the checkpoints that were deleted, or would be. */
  readonly checkpoints: readonly string[];
  /** A message for each that could not be deleted, or why none of the domain could. */
  readonly failed: readonly string[];
}

/**
 * Deletes the checkpoints that a repository which is no more has left in a domain, with their dirty bitmaps,
 * and takes them out of this host's record. Whether a repository exists that this host has not backed up to,
 * or that was moved, nothing here can tell: that is the caller's word. Each checkpoint goes by itself, so
 * whatever interrupts this, it can be run again.
 *
 * @returns an entry for each domain. Of several, one that can't be worked on now does not keep it from the
 *   others
 * @throws {UsageError} `E_REPOSITORY_ID`: no id of a repository
 * @throws {PreconditionError} `E_REPOSITORY_ALIVE`: it is the id of `alive`, or the repository still is where
 *   this host last backed up to it; `E_DOMAIN_OFF`, `E_FOREIGN_JOB` and the like: libvirt can't delete
 *   checkpoints of the one domain now
 * @throws {PreconditionError} `E_STATE_FOLDER`: this host's record is another user's
 * @throws {DamageError} `E_CHECKPOINT_RECORD`; `E_REPOSITORY`: what is at its place can't be read
 */
export async function retireRepository(options: RetireOptions): Promise<readonly RetiredCheckpoints[]> {
  const { libvirt, domainName, alive, stateFolder = usualStateFolder() } = options;
  const id = options.repositoryId.toLowerCase();
  const prefix = checkpointPrefix(id);
  assertId(options.repositoryId);
  if (alive && prefix === checkpointPrefix(alive.id)) throw isAlive(alive);
  const recorded = await recordedRepositories(stateFolder);
  const unknown = await unknownBackups(libvirt);
  if (unknown !== undefined) {
    options.onWarning?.(
      `whether repository ${id} is alive is known of this user's backups from this host only, not of ${unknown}`,
    );
  }
  const dead = recorded.filter((each) => each.id.startsWith(id));
  for (const each of dead) {
    const there = await whereItWas(each, options.signal);
    if (there) throw isAlive(there, each);
  }
  // The names of checkpoints have only the first digits, and another repository's may begin likewise.
  const others = recorded.filter((each) => !dead.includes(each) && checkpointPrefix(each.id) === prefix);
  const search: Search = { ...options, prefix, dead, others };
  if (domainName !== undefined) return [await retireFrom(domainName, search)];
  const retired: RetiredCheckpoints[] = [];
  for (const name of await libvirt.runningDomains()) {
    try {
      retired.push(await retireFrom(name, search));
    } catch (error) {
      if (!(error instanceof BackupError)) throw error;
      retired.push({ domain: name, checkpoints: [], failed: [messageOf(error)] });
    }
  }
  return retired;
}

interface Search extends RetireOptions {
  readonly prefix: string;
  readonly dead: readonly RecordedRepository[];
  readonly others: readonly RecordedRepository[];
}

async function retireFrom(name: string, search: Search): Promise<RetiredCheckpoints> {
  const { libvirt, prefix, dead, others, dryRun, signal } = search;
  const domain = parseDomain(await libvirt.domainXml(name));
  const theirs = await CheckpointRecord.existing(others, domain.uuid);
  const present = (await libvirt.checkpointNames(domain)).filter((each) => each.startsWith(prefix));
  const found = present.filter((each) => !theirs.some((record) => record.has(each)));
  if (dryRun) return { domain: domain.name, checkpoints: found, failed: [] };
  if (found.length > 0) await refuseRetiring(libvirt, domain);
  const deleted = new Set<string>();
  const failed: string[] = [];
  for (const each of found) {
    try {
      await deleteCheckpoint(libvirt, domain, each);
      deleted.add(each);
    } catch (error) {
      signal?.throwIfAborted();
      failed.push(`checkpoint ${each} of ${domain.name} could not be deleted: ${messageOf(error)}`);
    }
  }
  // Also those that an earlier run deleted before it was killed.
  const isGone = (each: string): boolean => deleted.has(each) || !present.includes(each);
  for (const record of await CheckpointRecord.existing(dead, domain.uuid)) {
    await record.forget([...record.names].filter(isGone));
  }
  return { domain: domain.name, checkpoints: [...deleted], failed };
}

/**
 * Whose backups may be of the same domains, and are recorded elsewhere; undefined: nobody's that is known of.
 */
async function unknownBackups(libvirt: Libvirt): Promise<string | undefined> {
  const host = await libvirt.remoteHost();
  if (host !== undefined) return `those that are made on ${host}, or from other hosts: see there first`;
  const isSystems = (await libvirt.uri()).split("?")[0]?.endsWith("/system") ?? false;
  return isSystems && process.geteuid?.() !== 0
    ? "root's: run it as root, if root makes the backups"
    : undefined;
}

function isAlive({ id, path }: Repository, recorded?: RecordedRepository): PreconditionError {
  const why = recorded ? ", where this host last backed up to it" : "";
  const message = `repository ${id} is alive: it is at ${path}${why}. Its next increment needs its checkpoints, and its backups delete those that none needs. Nothing was deleted`;
  const record = recorded ? { record: recorded.folder } : {};
  return new PreconditionError("E_REPOSITORY_ALIVE", message, { details: { path, ...record } });
}

function assertId(repositoryId: string): void {
  if (/^[0-9a-f]{8}((-[0-9a-f]{4}){3}-[0-9a-f]{12})?$/i.test(repositoryId)) return;
  throw new UsageError(
    "E_REPOSITORY_ID",
    `"${repositoryId}" is no repository's id: it has to be a UUID, as in its nbdpull.json, or the eight digits after "nbdpull-" in the names of its checkpoints`,
  );
}
