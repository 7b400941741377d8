import { isLive } from "../repository/live-note.js";
import type { Repository } from "../repository/repository.js";

/**
 * The points of a domain whose images no other ones may replace now, each with the point that a guest runs on
 * (`restore --live`): that point itself, or one that it is based on. In a folder there are none: only bytes
 * that are wrong are overwritten there, which a guest could not have read.
 */
export async function sparedPoints(
  repository: Repository,
  domain: string,
): Promise<ReadonlyMap<string, string>> {
  const spared = new Map<string, string>();
  if (!repository.isInStore) return spared;
  for (const id of await repository.pointIds(domain)) {
    await using folder = await repository.openPoint(domain, id);
    if (await isLive(folder)) spared.set(id, id);
  }
  if (spared.size === 0) return spared;
  // The newest come first, so a point before those that it is based on.
  for (const { id, disks } of (await repository.points(domain, () => undefined)).toReversed()) {
    const live = spared.get(id);
    if (live === undefined) continue;
    for (const { parent } of disks) if (parent !== null && !spared.has(parent)) spared.set(parent, live);
  }
  return spared;
}

/** Says that a point is not mended, because a guest runs on `live`. */
export function sparedText(domain: string, id: string, live: string): string {
  const what = live === id ? "it" : `point ${live}, which is based on it`;
  return `point ${id} of ${domain} is not mended now: a guest runs on ${what}, and reads its images. Repair it when the restore --live is finished`;
}
