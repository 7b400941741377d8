import type { StoredRemoval, StoreWriting } from "../storage/stored-writing.js";
import { decide, describe } from "./decide.js";
import type { PruneOptions, PruneResult } from "./prune-options.js";

/**
 * Removes points from an object store. Nothing is merged there, so whatever a kept point is based on has been
 * decided to stay. Of points that are based on one another the newest goes first: whenever this ends, all
 * that are there can be restored.
 */
export async function pruneInStore(writing: StoreWriting, options: PruneOptions): Promise<PruneResult> {
  const { domain, signal } = options;
  const decision = await decide(options);
  let freedBytes = 0;
  const kept: StoredRemoval["versions"][] = [];
  for (const id of decision.plan.drop.toReversed()) {
    signal?.throwIfAborted();
    const removed = await writing.removePoint(id, { signal: writing.lost });
    freedBytes += removed.bytes;
    kept.push(removed.versions);
  }
  const versions = kept.filter((each) => each !== undefined);
  if (versions.length > 0) options.onWarning?.(textOf(domain, versions));
  return { ...describe(domain, decision), merges: [], writtenBytes: 0, freedBytes };
}

/** What a bucket with versions does with what was removed. */
function textOf(domain: string, versions: readonly NonNullable<StoredRemoval["versions"]>[]): string {
  const what = `the bucket keeps versions: ${versions.length} removed points of ${domain} stay there as old ones, and take room`;
  const dates = versions.flatMap(({ lockedUntil }) => lockedUntil?.getTime() ?? []);
  if (versions.some(({ isHeld }) => isHeld)) return `${what} as long as a legal hold is on them`;
  if (dates.length === 0) return `${what} until a lifecycle rule of the bucket removes them`;
  return `${what}: by object lock, they can't be deleted before ${new Date(Math.max(...dates)).toISOString()}`;
}
