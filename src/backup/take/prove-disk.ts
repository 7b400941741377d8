import { damageIn } from "../base/damage.js";
import { DamageError } from "../base/errors.js";
import { changedIdentity } from "../guest/disk-identity.js";
import { type Proof, type ProofAmount, type ProofOptions, proveBase } from "../prove/prove-base.js";
import { type DiskIdentity, diskOf } from "../repository/manifest.js";

/** How much of a base is proven before an increment on it is taken. */
export interface ProveSettings {
  /** Clusters, or `none`: nothing is compared. Default 64. */
  readonly amount?: ProofAmount | "none" | undefined;
  /** Makes the choice of an earlier run again. */
  readonly seed?: string | undefined;
}

/** Clusters that are compared where the user names no number. */
const DEFAULT_CLUSTERS = 64;
/** Fewest clusters that are compared where the disk's identity has changed. */
const CLUSTERS_OF_OTHERS = 1024;

/** What the proof of one disk's base has found. */
export interface DiskProof extends Proof {
  readonly disk: string;
  /** The base. */
  readonly parent: string;
  /** What of the disk's identity has changed since the base, for example `source, inode`. */
  readonly changed: string | undefined;
}

/** Damage of a stored point, which the proof of a disk's base has found. */
export interface BaseDamage {
  readonly point: string;
  /** In the words of what was found. */
  readonly message: string;
  readonly error: unknown;
}

interface ProveDiskOptions extends Omit<ProofOptions, "amount" | "seed"> {
  readonly settings: ProveSettings | undefined;
  readonly identity: DiskIdentity | undefined;
}

/**
 * Compares a disk with the base of its increment.
 *
 * @returns what was found, if there was anything to compare, the reason if the disk must be taken in full,
 *   and the damage that is the reason
 * @throws {NbdError} the connection failed
 */
export async function proveDisk({ settings = {}, identity, ...options }: ProveDiskOptions): Promise<{
  readonly proof?: DiskProof;
  readonly reason?: string;
  readonly damage?: BaseDamage;
}> {
  const { parent, disk } = options;
  const changed = changedIdentity(diskOf(parent, disk)?.identity, identity);
  let { amount = DEFAULT_CLUSTERS } = settings;
  if (amount === "none") return {};
  if (amount !== "all" && changed !== undefined) amount = Math.max(amount, CLUSTERS_OF_OTHERS);
  try {
    const found = await proveBase({ ...options, amount, seed: settings.seed });
    const proof = { disk, parent: parent.id, changed, ...found };
    if (found.differing === undefined) return { proof };
    const reason = `the disk is not the one that its base was taken from: guest offset ${found.differing} is not as in point ${parent.id}, though the bitmap calls it clean`;
    return { proof, reason };
  } catch (error) {
    const message = error instanceof DamageError ? error.message : damageIn(error);
    if (message === undefined) throw error;
    const point = error instanceof DamageError ? String(error.details["point"] ?? parent.id) : parent.id;
    const reason = `an increment on ${parent.id} could not be restored: ${message}`;
    return { reason, damage: { point, message, error } };
  }
}
