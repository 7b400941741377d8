/** Whether a new chain is due: full backups at intervals, without a timer or a note of their own. */
import type { FullEvery, Level } from "../guest/levels.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import { domainFolder } from "../repository/domain-folder.js";
import { type Manifest, PRUNED_BELOW, timeOf } from "../repository/manifest.js";
import { pointsOf } from "../repository/point-owners.js";
import { Repository } from "../repository/repository.js";
import type { BackupOptions } from "./backup-options.js";

const DAY_MS = 24 * 3600 * 1000;

/**
 * The level to take of a running domain: `full` if one is due, else the one that was asked for. A repository
 * that has none of its points, or is not there yet, gets a full one anyway.
 */
export async function levelWhenDue(
  domain: DomainDefinition,
  {
    level,
    fullEvery,
    repositoryPath,
    signal,
  }: Pick<BackupOptions, "level" | "fullEvery" | "repositoryPath" | "signal">,
): Promise<Level> {
  if (fullEvery === undefined || level !== "auto") return level;
  const repository = await Repository.openIfThere(repositoryPath, { signal });
  if (!repository) return level;
  const folder = await domainFolder(repository, domain);
  const read = (): Promise<Manifest[]> => repository.points(folder, () => undefined);
  const points = pointsOf(await repository.reading(folder, read, signal), domain.uuid);
  return isFullDue(points, fullEvery, new Date()) ? "full" : level;
}

/**
 * By the local calendar, so that a run that begins a few minutes earlier than the last does not count as one
 * day less. A missed day is made up for by the next run. A full point of the future was made by a wrong
 * clock.
 * @param points of one domain, oldest first
 */
export function isFullDue(points: readonly Manifest[], every: FullEvery, now: Date): boolean {
  const newest = points.findLast(beginsChain);
  if (newest === undefined) return true;
  const age = calendarDays(new Date(timeOf(newest)), now);
  if (age < 0) return true;
  return age >= ("days" in every ? every.days : daysSince(every.weekday, now) + 1);
}

/** Whether all of its disks were read from the guest, and increments can be based on it. */
function beginsChain({ level, checkpoint, disks }: Manifest): boolean {
  return level === "full" && checkpoint !== null && disks.every(({ reason }) => reason !== PRUNED_BELOW);
}

/** How many midnights lie between two moments. */
function calendarDays(from: Date, to: Date): number {
  const midnight = (at: Date): number => Date.UTC(at.getFullYear(), at.getMonth(), at.getDate());
  return (midnight(to) - midnight(from)) / DAY_MS;
}

/** Since the last such weekday; 0: it is today. */
function daysSince(weekday: number, now: Date): number {
  return (now.getDay() - weekday + 7) % 7;
}
