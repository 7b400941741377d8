import { PreconditionError } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import { prune } from "../prune/prune.js";
import type { PruneResult } from "../prune/prune-options.js";
import type { Retention } from "../prune/retention.js";
import { type JudgedPoint, obstacleText } from "../repository/judged-points.js";
import type { Repository } from "../repository/repository.js";

interface FollowOptions {
  readonly from: Repository;
  readonly to: Repository;
  /** The name of its folder, in both. */
  readonly domain: string;
  readonly retention: Retention;
  readonly dryRun?: boolean | undefined;
  readonly signal: AbortSignal;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** What the copy has found. */
interface Found {
  /** The points of the repository that is copied. */
  readonly judged: readonly JudgedPoint[];
  /** Ids of points of the other one that came from it. */
  readonly theirs: readonly string[];
  /** Whether it has none of those any more that an earlier copy has recorded. */
  readonly isCutOff: boolean;
  readonly result: { readonly points: readonly { readonly id: string; readonly state: string }[] };
}

/** What went from a copy. */
export interface Followed {
  /** Ids of points of it that the original has dropped; those that no rule keeps go. Oldest first. */
  readonly gone: readonly string[];
  /** What the prune of the copy has done; undefined: there was nothing to do, or it was refused. */
  readonly pruned?: PruneResult | undefined;
  /** Why nothing was removed. */
  readonly refused?: string | undefined;
}

/**
 * Drops points from a copy that came from the original and that the original has dropped, unless a rule keeps
 * them. It is a prune of the copy that may drop nothing else. Whatever has emptied or damaged the original
 * must not do the same to the copy.
 * @throws {PreconditionError} `E_SOURCE_EMPTY`: the original has none of the points any more that came from
 *   it, though it may have new ones; and as `prune`
 */
export async function followPrune(options: FollowOptions, found: Found): Promise<Followed> {
  const { from, to, domain, retention, dryRun = false, signal, onWarning } = options;
  const { judged, theirs, isCutOff } = found;
  const known = new Set(judged.map(({ id }) => id));
  const gone = theirs.filter((id) => !known.has(id));
  if (isCutOff) throw isEmpty(options, gone.length, judged.length === 0);
  const damage = damageIn(found);
  if (gone.length === 0) return { gone };
  if (damage !== undefined) {
    const next = `Repair it in ${from.path}, or prune ${to.path} by itself, where sound points may be the last ones`;
    return { gone, refused: `nothing is removed: ${damage}. ${next}` };
  }
  const pruned = await prune({
    ...{ repository: to, domain, retention, dryRun, signal, onWarning },
    sync: true,
    mayGo: new Set(gone),
  });
  return { gone, pruned };
}

/** The first damage that is known of the original, or was found while it was copied. */
function damageIn({ judged, result }: Found): string | undefined {
  for (const { id, obstacles } of judged) {
    const [obstacle] = obstacles;
    if (obstacle) return `point ${id}: ${obstacleText(obstacle, id)}`;
  }
  const damaged = result.points.find(({ state }) => state === "damaged");
  return damaged && `point ${damaged.id} is damaged`;
}

function isEmpty({ from, to, domain }: FollowOptions, count: number, isBare: boolean): PreconditionError {
  const points = count === 1 ? "a point that came" : `${count} points that came`;
  const what = isBare
    ? `has no points of ${domain} any more, and ${to.path} has ${points} from there`
    : `has new points of ${domain}, and ${to.path} has ${points} from there, of which it has none any more`;
  const [path, name] = [shellWord(to.path), shellWord(domain)];
  const next = isBare
    ? `do it there too: nbdpull forget ${path} ${name}`
    : `prune there by itself (nbdpull prune ${path} ${name} with the rules that you keep points by), or copy once without --delete. Where the original keeps one point only, copy before it is pruned`;
  const message = `${from.path} ${what}: nothing is removed, since what empties a repository must not empty its copy. Find out what has become of them. If they were removed on purpose, ${next}`;
  return new PreconditionError("E_SOURCE_EMPTY", message, { details: { domain } });
}
