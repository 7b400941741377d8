import { messageOf, PreconditionError } from "../base/errors.js";
import { usualStateFolder } from "../host/state-folder.js";
import { parseDomain } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Repository } from "../repository/repository.js";
import { CheckpointRecord, recordedRepositories, whereItWas } from "./checkpoint-record.js";
import { retireCheckpoints } from "./guest.js";
import { refuseRetiring } from "./refuse-retiring.js";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

interface RetireDomainOptions {
  readonly repository: Repository;
  readonly uuid: string;
  /** Connects to libvirt. It is only called if this host has made checkpoints. */
  readonly connect: () => Libvirt;
  /** Only tell what would be deleted. */
  readonly dryRun: boolean;
  /** Where this host records which checkpoints are whose; default: `usualStateFolder`. */
  readonly stateFolder?: string | undefined;
}

export interface RetiredDomain {
  readonly uuid: string;
  /** Names of the checkpoints that were deleted, or would be. */
  readonly checkpoints: readonly string[];
  /** A message for each that could not be deleted. */
  readonly failed: readonly string[];
}

/**
 * Deletes the checkpoints that this host has made of a domain for a repository, with their dirty bitmaps.
 * Those of other repositories, hosts and programs stay. A domain that libvirt doesn't have any more has none.
 *
 * @throws {PreconditionError} `E_DOMAIN_OFF`; `E_FOREIGN_JOB` and the like: a job runs on it;
 *   `E_REPOSITORY_MOVED`: the record is of a repository elsewhere; and what libvirt says
 * @throws {DamageError} `E_CHECKPOINT_RECORD`
 */
export async function retireDomain(options: RetireDomainOptions): Promise<RetiredDomain> {
  const { repository, connect, dryRun, stateFolder = usualStateFolder() } = options;
  const none = { uuid: options.uuid, checkpoints: [], failed: [] };
  // As libvirt writes it. A manifest may have any text there, and no backup of this host has made that.
  const uuid = options.uuid.toLowerCase();
  if (!UUID.test(uuid)) return none;
  const ours = (await recordedRepositories(stateFolder)).find(({ id }) => id === repository.id);
  const [record] = ours ? await CheckpointRecord.existing([ours], uuid) : [];
  if (!ours || !record || record.names.size === 0) return none;
  // Whoever can write to a repository can give it another one's id.
  const there = await whereItWas(ours);
  if (!there || !(await repository.isAt(await there.realPath()))) {
    const message = `the checkpoints that this host has made for repository ${repository.id} are those of one that was elsewhere (${ours.folder}): they stay`;
    throw new PreconditionError("E_REPOSITORY_MOVED", message, { details: { record: ours.folder } });
  }
  await using libvirt = connect();
  if (!(await isThere(libvirt, uuid))) return none;
  const domain = parseDomain(await libvirt.domainXml(uuid));
  const found = (await libvirt.checkpointNames(domain)).filter((name) => record.has(name));
  if (found.length === 0 || dryRun) return { ...none, checkpoints: found };
  await refuseRetiring(libvirt, domain);
  const { retired, failed } = await retireCheckpoints({ libvirt, domain }, record, () => true);
  return { ...none, checkpoints: retired, failed };
}

async function isThere(libvirt: Libvirt, uuid: string): Promise<boolean> {
  try {
    await libvirt.domainUuid(uuid);
    return true;
  } catch (error) {
    if (error instanceof PreconditionError && error.code === "E_NO_SUCH_DOMAIN") return false;
    throw error;
  }
}

/** Why checkpoints of a domain stay, though its points go; undefined: that forbids it. */
export function whyTheyStay(error: unknown): string | undefined {
  const mayStay = ["E_DOMAIN_OFF", "E_REPOSITORY_MOVED", "E_STATE_FOLDER", "E_LIBVIRT", "E_LIBVIRT_ACCESS"];
  const { code } = error as { readonly code?: string };
  return code !== undefined && mayStay.includes(code) ? messageOf(error) : undefined;
}
