import { hasLiveNote } from "../repository/live-note.js";
import { keptVersionsText } from "../storage/kept-versions-text.js";
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
  if (versions.length > 0)
    options.onWarning?.(keptVersionsText(options.domain, "images that were replaced", versions));
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
    const removed = await writing.removePoint(id, { signal: writing.over, refuse });
    freedBytes += removed.bytes;
    if (removed.versions) versions.push(removed.versions);
  }
  if (versions.length > 0) onWarning?.(keptVersionsText(domain, "removed points", versions));
  return freedBytes;
}
