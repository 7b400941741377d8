import { DamageError, messageOf, PreconditionError } from "../base/errors.js";
import { readDamage, recordDamage } from "../repository/damage-record.js";
import type { Repository } from "../repository/repository.js";
import type { BaseDamage } from "./prove-disk.js";
import type { PointDisk } from "./take-options.js";

interface DamagedBasesOptions {
  readonly repository: Repository;
  /** Name of the domain's folder. */
  readonly home: string;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/**
 * Notes the damage beside its point, as a verify does: the next backup plans with it. What can't be noted is
 * a warning.
 */
export async function noteBaseDamage(
  { point, error }: BaseDamage,
  { repository, home, onWarning }: DamagedBasesOptions,
): Promise<void> {
  if (!(error instanceof DamageError) || error.details["point"] !== point) return;
  const { disk, guestOffset } = error.details;
  const place = {
    ...(typeof disk === "string" ? { disk } : {}),
    ...(typeof guestOffset === "number" ? { guestOffset } : {}),
    message: error.message,
  };
  try {
    await using folder = await repository.openPoint(home, point);
    const known = (await readDamage(folder))?.places ?? [];
    await using records = await repository.holdRecords(home, point);
    if (known.some(({ message }) => message === place.message)) return;
    await recordDamage(records, [...known, place]);
  } catch (cause) {
    onWarning?.(`the damage of point ${point} can't be noted beside it (${messageOf(cause)}): verify it`);
  }
}

/**
 * Why disks can't be increments whose own chains are whole, by their names: what they would be based on has
 * damage of another disk, and a copy takes over whole points only, so it would leave out the new one.
 *
 * @param fixed the disks that are increments already, since a killed run has begun them so
 * @throws {PreconditionError} `E_LEFT_POINT`: one of those is based on the damage too
 */
export async function disksOnDamage(
  damages: readonly BaseDamage[],
  disks: readonly PointDisk[],
  fixed: ReadonlySet<string>,
  { repository, home }: DamagedBasesOptions,
): Promise<ReadonlyMap<string, string>> {
  const reasons = new Map<string, string>();
  if (damages.length === 0) return reasons;
  for (const { name, increment } of disks) {
    if (!increment) continue;
    const below = await pointsBelow(repository, home, increment.parent.id);
    const found = damages.find(({ point }) => below.has(point));
    if (!found) continue;
    if (fixed.has(name)) throw leftOnDamage(name, found);
    const { id } = increment.parent;
    reasons.set(name, `an increment on ${id} could not be copied to another repository: ${found.message}`);
  }
  return reasons;
}

function leftOnDamage(disk: string, { point, message }: BaseDamage): PreconditionError {
  const text = `what a killed backup has stored can't be gone on with: ${disk} is based on point ${point}, which was found to be damaged since (${message})`;
  return new PreconditionError("E_LEFT_POINT", text, { details: { disk, point } });
}

/** The point and all that any of its disks is based on, by their ids. */
async function pointsBelow(repository: Repository, home: string, id: string): Promise<ReadonlySet<string>> {
  const ids = new Set([id]);
  // Grows while it is walked.
  for (const each of ids) {
    try {
      for (const { parent } of (await repository.point(home, each)).disks)
        if (parent !== null) ids.add(parent);
    } catch (error) {
      // It is damaged itself, and what it is based on is not known.
      if (!(error instanceof DamageError)) throw error;
    }
  }
  return ids;
}
