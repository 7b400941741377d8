import { allOrNone } from "../base/in-parallel.js";
import { isLive } from "../repository/live-note.js";
import type { Repository } from "../repository/repository.js";

/** Points that are looked at side by side: each has to wait for an answer of the store. */
const LOOKED_AT_ONCE = 16;

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
  const ids = await repository.pointIds(domain);
  const areLive = await allOrNone(ids, LOOKED_AT_ONCE, undefined, async (id) => {
    await using folder = await repository.openPoint(domain, id);
    return await isLive(folder);
  });
  for (const [i, id] of ids.entries()) if (areLive[i]) spared.set(id, id);
  if (spared.size === 0) return spared;
  const readBy = await pointsRead(repository, domain);
  for (const live of [...spared.keys()]) {
    for (const id of readBy(live)) if (!spared.has(id)) spared.set(id, live);
  }
  return spared;
}

/**
 * Which points are read by who reads a point of a domain: that one and what it is based on. If the manifest
 * of one of them can't be read any more, nobody can tell what is below, and whoever opened it before reads
 * that all the same: then they are all points that are older.
 */
export async function pointsRead(
  repository: Repository,
  domain: string,
): Promise<(id: string) => ReadonlySet<string>> {
  const ids = await repository.pointIds(domain);
  const points = await repository.points(domain, () => undefined);
  const manifests = new Map(points.map((point) => [point.id, point]));
  return (id) => {
    const chain = new Set([id]);
    // It grows meanwhile, and ends: a parent is older than what is based on it.
    for (const each of chain) {
      const manifest = manifests.get(each);
      if (!manifest) return new Set([id, ...ids.filter((other) => other < id)]);
      for (const { parent } of manifest.disks) if (parent !== null) chain.add(parent);
    }
    return chain;
  };
}

/** Says that a point is not mended, because a guest runs on `live`. */
export function sparedText(domain: string, id: string, live: string): string {
  const what = live === id ? "it" : `point ${live}, which is based on it as far as can be told`;
  return `point ${id} of ${domain} is not mended now: a guest runs on ${what}, and reads its images. Repair it when the restore --live is finished`;
}
