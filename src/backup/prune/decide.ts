import { readDamage } from "../repository/damage-record.js";
import { isLive } from "../repository/live-note.js";
import { diskOf, type Manifest, timeOf } from "../repository/manifest.js";
import { domainsAmong, isOwner, type Owners, ownersOf } from "../repository/point-owners.js";
import { hiddenPoints } from "../repository/prune-journal.js";
import type { Repository } from "../repository/repository.js";
import { type Merge, type PrunePlan, planPrune } from "./prune-plan.js";
import { keptBy, type Retention } from "./retention.js";

/** Why a point stays from which a `restore --live` is not finished. */
export const LIVE_REASON = "a guest runs on it";

interface DecideOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  /** Whose points may go, as in `PruneOptions`; undefined: those of all domains in the folder. */
  readonly uuid?: string | undefined;
  readonly retention: Retention;
  /** Ids of the only points that may go, as in `PruneOptions`. */
  readonly mayGo?: ReadonlySet<string> | undefined;
  /** Whether an object store was found to do what a merge needs; undefined: the repository tells. */
  readonly canMerge?: boolean | undefined;
}

export interface PrunedPoint {
  readonly id: string;
  /** Of its domain; null: unknown. */
  readonly uuid: string | null;
  readonly action: "keep" | "drop";
  /**
   * The rules that keep it, `ahead of the clock` (it says that it was made later than now), `base` (the next
   * increment starts from it), `a guest runs on it` (its disks are still filled), `another domain`, `not
   * asked for` (only others may go), `damaged` chains that nothing is merged in, `raw` or locked ones in an
   * object store, or in one that `can't replace on condition`, or the kept points that are based on it.
   */
  readonly reasons: readonly string[];
}

/** Which points of a folder stay and which go. */
interface Decision {
  readonly points: readonly Manifest[];
  readonly owners: Owners;
  readonly keep: ReadonlyMap<string, readonly string[]>;
  readonly plan: PrunePlan;
}

/**
 * Decides which points of a folder go. Only reads.
 * @throws {DamageError} a manifest can't be read, so it is unknown which points need which
 */
export async function decide(options: DecideOptions): Promise<Decision> {
  const { repository, domain } = options;
  const points = await repository.points(domain, (error) => {
    throw error;
  });
  // Only a dry run finds hidden points: a prune that died dropped them, and prepared their merges.
  await using folder = await repository.openDomain(domain);
  const hidden = folder ? await hiddenPoints(folder) : new Set<string>();
  const going = await Promise.all([...hidden].map((id) => repository.point(domain, id)));
  const all = [...points, ...going].sort((one, other) => (one.id < other.id ? -1 : 1));
  const owners = ownersOf(all);
  const keep = new Map(domainsAmong(owners).flatMap((owner) => [...kept(points, owners, owner, options)]));
  for (const { id } of points) {
    await using point = await repository.openPoint(domain, id);
    if (!(await isLive(point))) continue;
    keep.set(id, [...(keep.get(id) ?? []), LIVE_REASON]);
    // In a store nobody can wait until it is not read.
    if (repository.isInStore) keepBelow(all, id, keep);
  }
  for (const { id } of points) {
    if (options.mayGo && !options.mayGo.has(id) && !keep.has(id)) keep.set(id, ["not asked for"]);
  }
  const damaged = await damagedDisks(repository, domain, all);
  const plan = await planSparing(all, keep, objectionTo(options, all, damaged));
  return {
    points,
    owners,
    keep,
    plan: {
      ...plan,
      drop: plan.drop.filter((id) => !hidden.has(id)),
      merges: plan.merges.filter(({ dropped }) => dropped.some((id) => !hidden.has(id))),
    },
  };
}

/** Keeps all that a point is based on. */
function keepBelow(points: readonly Manifest[], top: string, keep: Map<string, readonly string[]>): void {
  const reached = new Set([top]);
  for (const { id, disks } of points.toReversed()) {
    if (!reached.has(id)) continue;
    if (!keep.has(id)) keep.set(id, [`${top} is based on it`]);
    for (const { parent } of disks) if (parent !== null) reached.add(parent);
  }
}

/** The points of one domain that stay, each with the reasons. Points of other domains don't count for it. */
function kept(
  points: readonly Manifest[],
  owners: Owners,
  owner: string | null,
  { retention, uuid }: DecideOptions,
): Map<string, readonly string[]> {
  const ours = points.filter(({ id }) => owners.get(id) === owner);
  if (uuid !== undefined && !isOwner(owner, uuid))
    return new Map(ours.map(({ id }) => [id, ["another domain"]]));
  const timed = ours.map((point) => ({ id: point.id, time: timeOf(point) }));
  const keep = new Map<string, readonly string[]>(keptBy(timed, retention, Date.now()));
  // The next increment may be based on the newest point with a checkpoint, or on the newest of all.
  for (const base of [ours.findLast(({ checkpoint }) => checkpoint !== null), ours.at(-1)]) {
    if (base && !keep.has(base.id)) keep.set(base.id, ["base"]);
  }
  return keep;
}

/** The points and why they stay, as a prune reports them. */
export function describe(
  domain: string,
  { points, owners, keep, plan }: Decision,
): { domain: string; points: PrunedPoint[] } {
  return {
    domain,
    points: points.map(({ id }) => ({
      id,
      uuid: owners.get(id) ?? null,
      action: plan.drop.includes(id) ? "drop" : "keep",
      reasons: keep.get(id) ?? plan.needed.get(id)?.map((other) => `${other} is based on it`) ?? [],
    })),
  };
}

/** Disks of points in which a verify has found damage, as `POINT/DISK`. */
async function damagedDisks(
  repository: Repository,
  domain: string,
  points: readonly Manifest[],
): Promise<ReadonlySet<string>> {
  const damaged = new Set<string>();
  for (const { id, disks } of points) {
    await using folder = await repository.openPoint(domain, id);
    const record = await readDamage(folder);
    if (!record) continue;
    const isUnknown = record.foundAt === undefined;
    for (const { name } of disks) {
      if (isUnknown || record.places.some(({ disk }) => disk === name)) damaged.add(`${id}/${name}`);
    }
  }
  return damaged;
}

/** Why a merge is not done, in the words of a reason; undefined: it is. */
type Objection = (merge: Merge) => Promise<string | undefined>;

function objectionTo(
  { repository, domain, canMerge }: DecideOptions,
  points: readonly Manifest[],
  damaged: ReadonlySet<string>,
): Objection {
  return async ({ disk, child, dropped }) => {
    if ([child, ...dropped].some((id) => damaged.has(`${id}/${disk}`))) return "damaged";
    if (!repository.isInStore) return undefined;
    if (!(canMerge ?? (await repository.recordedAbilities())?.conditionalReplace ?? true))
      return "the store can't replace on condition";
    const images = points.filter(({ id }) => [child, ...dropped].includes(id));
    // An image of another format would be made by reading all of it.
    if (images.some((point) => diskOf(point, disk)?.format === "raw")) return "raw";
    // What can't be deleted yet would only get a copy.
    let until: Date | undefined;
    for (const point of images.filter(({ id }) => id !== child)) {
      const kept = await repository.keptVersion(domain, point.id, diskOf(point, disk)?.file ?? "");
      if (kept?.isHeld) return "under a legal hold";
      if (kept?.lockedUntil && kept.lockedUntil > (until ?? 0)) until = kept.lockedUntil;
    }
    return until && `locked until ${until.toISOString()}`;
  };
}

/**
 * Plans a prune without the merges that there are objections to: nothing is merged out of or into a damaged
 * image, since the damage would live on in the merged one, where nobody knows of it. What such a merge would
 * drop stays. Its points are added to `keep`.
 */
async function planSparing(
  points: readonly Manifest[],
  keep: Map<string, readonly string[]>,
  objection: Objection,
): Promise<PrunePlan> {
  const allowed = new Set<string>();
  for (;;) {
    const plan = planPrune(points, new Set(keep.keys()));
    let isChanged = false;
    for (const merge of plan.merges) {
      const key = JSON.stringify(merge);
      const why = allowed.has(key) ? undefined : await objection(merge);
      allowed.add(key);
      if (why === undefined) continue;
      for (const id of merge.dropped) keep.set(id, [`${merge.child} is based on it`, why]);
      isChanged = true;
      break;
    }
    if (!isChanged) return plan;
  }
}
