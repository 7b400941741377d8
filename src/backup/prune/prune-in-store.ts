import { PreconditionError } from "../base/errors.js";
import { hasLiveNote } from "../repository/live-note.js";
import type { StoredRemoval, StoreWriting } from "../storage/stored-writing.js";
import { type Decision, decide, describe } from "./decide.js";
import type { PruneOptions, PruneResult } from "./prune-options.js";

/**
 * Removes points from an object store. Nothing is merged there, so whatever a kept point is based on has been
 * decided to stay.
 * @throws {PreconditionError} `E_LIVE`: a guest has begun to run on a point after it was decided what goes
 */
export async function pruneInStore(writing: StoreWriting, options: PruneOptions): Promise<PruneResult> {
  const decision = await decide(options);
  const freedBytes = await removePoints(writing, decision.plan.drop, options);
  warnOfOneChain(decision, options);
  return { ...describe(options.domain, decision), merges: [], writtenBytes: 0, freedBytes };
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
  const kept: StoredRemoval["versions"][] = [];
  for (const id of points.toReversed()) {
    signal?.throwIfAborted();
    // One that has begun since this was decided.
    const refuse = (names: readonly string[]): void => {
      if (hasLiveNote(names)) throw beganMeanwhile(domain, id);
    };
    const removed = await writing.removePoint(id, { signal: writing.lost, refuse });
    freedBytes += removed.bytes;
    kept.push(removed.versions);
  }
  const versions = kept.filter((each) => each !== undefined);
  if (versions.length > 0) onWarning?.(textOf(domain, versions));
  return freedBytes;
}

/** Warns where prunes never remove anything: all points are one chain, and the newest needs them all. */
export function warnOfOneChain(
  { points, plan, heldBySuccessors }: Decision,
  { domain, onWarning }: PruneOptions,
): void {
  const isOneChain = points.filter(({ level }) => level === "full").length === 1;
  if (!isOneChain || plan.drop.length > 0 || heldBySuccessors.length === 0) return;
  const count = heldBySuccessors.length === 1 ? "1 point" : `${heldBySuccessors.length} points`;
  onWarning?.(
    `${domain}: nothing is removed: no rule keeps ${count}, but later ones are based on them, and in an object store nothing is merged. Begin a new chain as often as old points should go (nbdpull backup --level full)`,
  );
}

function beganMeanwhile(domain: string, id: string): PreconditionError {
  const message = `a guest has begun to run on point ${id} of ${domain} just now, so it stays: run this again`;
  return new PreconditionError("E_LIVE", message, { details: { domain, point: id } });
}

/** What a bucket with versions does with what was removed. */
function textOf(domain: string, versions: readonly NonNullable<StoredRemoval["versions"]>[]): string {
  const what = `the bucket keeps versions: ${versions.length} removed points of ${domain} stay there as old ones, and take room`;
  const dates = versions.flatMap(({ lockedUntil }) => lockedUntil?.getTime() ?? []);
  if (versions.some(({ isHeld }) => isHeld)) return `${what} as long as a legal hold is on them`;
  if (dates.length === 0) return `${what} until a lifecycle rule of the bucket removes them`;
  return `${what}: by object lock, they can't be deleted before ${new Date(Math.max(...dates)).toISOString()}`;
}
