import { readRehearsal } from "../src/backup/repository/rehearsal-record.js";
import type { Repository } from "../src/backup/repository/repository.js";

/**
 * A part of the domains, but at least one: those first whose last rehearsal is longest ago. So each has its
 * turn.
 * @param percent from 1 to 100
 */
export async function shareOf(
  repository: Repository,
  domains: readonly string[],
  percent: number,
): Promise<string[]> {
  const count = Math.ceil((domains.length * percent) / 100);
  if (count === domains.length) return [...domains];
  const known = await Promise.all(
    domains.map(async (domain) => ({ domain, last: await lastRehearsal(repository, domain) })),
  );
  const due = known.toSorted((one, other) => (one.last < other.last ? -1 : one.last > other.last ? 1 : 0));
  return due.slice(0, count).map(({ domain }) => domain);
}

/** When a point of the domain was last rehearsed, in ISO 8601; empty: never. */
async function lastRehearsal(repository: Repository, domain: string): Promise<string> {
  let last = "";
  for (const id of await repository.pointIds(domain)) {
    await using point = await repository.openPoint(domain, id);
    const { at = "" } = (await readRehearsal(point)) ?? {};
    if (at > last) last = at;
  }
  return last;
}
