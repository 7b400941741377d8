import { messageOf } from "../src/backup/base/errors.js";
import { recordDamage } from "../src/backup/repository/damage-record.js";
import type { Repository } from "../src/backup/repository/repository.js";
import type { Finding } from "../src/backup/verify/verify.js";
import type { Output } from "./output.js";

/**
 * Keeps what was found just now beside the points, for later commands. Where nothing can be written, or root
 * must not write since others can, that is a warning.
 * @param found the damage of each point that was verified, by the point's id; none: it is sound
 */
export async function noteDamage(
  repository: Repository,
  domain: string,
  found: ReadonlyMap<string, readonly Finding[]>,
  output: Output,
): Promise<void> {
  const what = "its damage can't be noted beside it, so later backups don't know of it";
  const damaged = [...found.values()].some((damages) => damages.length > 0);
  try {
    await repository.assertTrusted(domain);
  } catch (error) {
    if (damaged) output.warn(`${domain}: ${what} (${messageOf(error)})`);
    return;
  }
  for (const [id, damages] of found) {
    try {
      await using folder = await repository.holdRecords(domain, id);
      await recordDamage(folder, damages);
    } catch (error) {
      // Mostly a sound point has no record that had to go.
      if (damages.length === 0) continue;
      output.warn(`${domain} ${id}: ${what} (${messageOf(error)})`);
    }
  }
}

export function isDamage({ severity }: Finding): boolean {
  return severity === "damage";
}
