import { hasLiveNote } from "../repository/live-note.js";
import type { KeptVersion, StoreWriting } from "../storage/stored-writing.js";
import { decide, describe, LIVE_REASON } from "./decide.js";
import { beganMeanwhile, mergeInStore } from "./merge-in-store.js";
import { bytesOf, type DoneMerge, type PruneOptions, type PruneResult } from "./prune-options.js";

/**
 * Merges into kept points what they need of those that go, one point after the other, and removes those last.
 * Whenever this ends, all points that are there can be restored.
 * @throws {PreconditionError} `E_LIVE`: a guest has begun to run on a point after it was decided what goes
 */
export async function pruneInStore(writing: StoreWriting, options: PruneOptions): Promise<PruneResult> {
  const decision = await decide({ ...options, canMerge: writing.canMerge });
  const { points, plan, keep } = decision;
  const isLive = (id: string): boolean => keep.get(id)?.includes(LIVE_REASON) ?? false;
  const merges: DoneMerge[] = [];
  const versions: KeptVersion[] = [];
  let grownBytes = 0;
  for (const point of points) {
    const ofPoint = plan.merges.filter(({ child }) => child === point.id);
    if (ofPoint.length === 0) continue;
    const merged = await mergeInStore(writing, ofPoint, point, { ...options, isLive });
    merges.push(...merged.merges);
    versions.push(...merged.versions);
    grownBytes += merged.grownBytes;
  }
  if (versions.length > 0) options.onWarning?.(textOf(options.domain, "images that were replaced", versions));
  const freedBytes = (await removePoints(writing, plan.drop, options)) - grownBytes;
  return { ...describe(options.domain, decision), merges, ...bytesOf(merges), freedBytes };
}

/**
 * Removes points of a domain from an object store. Of points that are based on one another the newest goes
 * first: whenever this ends, all that are there can be restored.
 * @param points oldest first; no other point is based on them
 * @returns the bytes of what was removed
 * @throws {PreconditionError} `E_LIVE`: a guest has begun to run on a point meanwhile
 */
export async function removePoints(
  writing: StoreWriting,
  points: readonly string[],
  { domain, signal, onWarning }: Pick<PruneOptions, "domain" | "signal" | "onWarning">,
): Promise<number> {
  let freedBytes = 0;
  const versions: KeptVersion[] = [];
  for (const id of points.toReversed()) {
    signal?.throwIfAborted();
    // One that has begun since this was decided.
    const refuse = (names: readonly string[]): void => {
      if (hasLiveNote(names)) throw beganMeanwhile(domain, id);
    };
    const removed = await writing.removePoint(id, { signal: writing.lost, refuse });
    freedBytes += removed.bytes;
    if (removed.versions) versions.push(removed.versions);
  }
  if (versions.length > 0) onWarning?.(textOf(domain, "removed points", versions));
  return freedBytes;
}

/** What a bucket with versions does with what was removed. */
function textOf(domain: string, those: string, versions: readonly KeptVersion[]): string {
  const what = `the bucket keeps versions: ${versions.length} ${those} of ${domain} stay there as old ones, and take room`;
  const dates = versions.flatMap(({ lockedUntil }) => lockedUntil?.getTime() ?? []);
  if (versions.some(({ isHeld }) => isHeld)) return `${what} as long as a legal hold is on them`;
  if (dates.length === 0) return `${what} until a lifecycle rule of the bucket removes them`;
  return `${what}: by object lock, they can't be deleted before ${new Date(Math.max(...dates)).toISOString()}`;
}
