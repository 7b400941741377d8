import { readDamage } from "../repository/damage-record.js";
import { isLive } from "../repository/live-note.js";
import { type Manifest, timeOf } from "../repository/manifest.js";
import { domainsAmong, isOwner, type Owners, ownersOf } from "../repository/point-owners.js";
import { hiddenPoints } from "../repository/prune-journal.js";
import type { Repository } from "../repository/repository.js";
import { type PrunePlan, planPrune } from "./prune-plan.js";
import { keptBy, type Retention } from "./retention.js";

interface DecideOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  /** Whose points may go, as in `PruneOptions`; undefined: those of all domains in the folder. */
  readonly uuid?: string | undefined;
  readonly retention: Retention;
  /** Ids of the only points that may go, as in `PruneOptions`. */
  readonly mayGo?: ReadonlySet<string> | undefined;
}

export interface PrunedPoint {
  readonly id: string;
  /** Of its domain; null: unknown. */
  readonly uuid: string | null;
  readonly action: "keep" | "drop";
  /**
   * The rules that keep it, `ahead of the clock` (it says that it was made later than now), `base` (the next
   * increment starts from it), `a guest runs on it` (its disks are still filled), `another domain`, `not
   * asked for` (only others may go), `damaged` chains that nothing is merged in, or the kept points that are
   * based on it.
   */
  readonly reasons: readonly string[];
}

/** Which points of a folder stay and which go. */
export interface Decision {
  readonly points: readonly Manifest[];
  readonly owners: Owners;
  readonly keep: ReadonlyMap<string, readonly string[]>;
  readonly plan: PrunePlan;
  /** In a store: points that nothing else keeps than that kept ones are based on them. Oldest first. */
  readonly heldBySuccessors: readonly string[];
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
    if (await isLive(point)) keep.set(id, [...(keep.get(id) ?? []), "a guest runs on it"]);
  }
  for (const { id } of points) {
    if (options.mayGo && !options.mayGo.has(id) && !keep.has(id)) keep.set(id, ["not asked for"]);
  }
  const damaged = await damagedDisks(repository, domain, all);
  const byThemselves = new Set(keep.keys());
  // In a store nothing is merged: what lies there is never changed.
  const plan = repository.isInStore ? planWithoutMerges(all, keep) : planSparing(all, keep, damaged);
  const held = repository.isInStore ? [...keep.keys()].filter((id) => !byThemselves.has(id)) : [];
  return {
    points,
    owners,
    keep,
    heldBySuccessors: held.sort(),
    plan: {
      ...plan,
      drop: plan.drop.filter((id) => !hidden.has(id)),
      merges: plan.merges.filter(({ dropped }) => dropped.some((id) => !hidden.has(id))),
    },
  };
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

/**
 * Plans a prune that merges nothing out of or into a damaged image, since the damage would live on in the
 * merged one, where nobody knows of it. What such a merge would drop stays. Its points are added to `keep`.
 */
function planSparing(
  points: readonly Manifest[],
  keep: Map<string, readonly string[]>,
  damaged: ReadonlySet<string>,
): PrunePlan {
  for (;;) {
    const plan = planPrune(points, new Set(keep.keys()));
    const merge = plan.merges.find(({ disk, child, dropped }) =>
      [child, ...dropped].some((id) => damaged.has(`${id}/${disk}`)),
    );
    if (!merge) return plan;
    for (const id of merge.dropped) keep.set(id, [`${merge.child} is based on it`, "damaged"]);
  }
}

/**
 * Plans a prune of whole chains: whatever a kept point is based on stays too. Its points are added to `keep`.
 */
function planWithoutMerges(points: readonly Manifest[], keep: Map<string, readonly string[]>): PrunePlan {
  for (;;) {
    const plan = planPrune(points, new Set(keep.keys()));
    if (plan.merges.length === 0) return plan;
    for (const { child, dropped } of plan.merges) {
      for (const id of dropped) keep.set(id, [`${child} is based on it`]);
    }
  }
}
