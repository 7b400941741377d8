import type { Manifest } from "../repository/manifest.js";

/** What a prune does with a domain's points. Points are given by their ids. */
export interface PrunePlan {
  /** The points to be removed, oldest first. */
  readonly drop: readonly string[];
  /**
   * The points that no rule keeps but that several staying points are based on, with the ids of those. There
   * is no single image to merge such a point into, so it stays.
   */
  readonly needed: ReadonlyMap<string, readonly string[]>;
  readonly merges: readonly Merge[];
}

/** A disk of a point that stays, with the dropped points directly below it. */
export interface Merge {
  readonly disk: string;
  /** The staying point, which takes over the clusters that it needs of the dropped ones. */
  readonly child: string;
  /** Newest first, each the parent of the one before it. */
  readonly dropped: readonly string[];
}

/**
 * Decides which points can go. If only one chain of staying points is based on a dropped point, the dropped
 * point is merged into it, disk by disk. If several are (differentials, siblings), the point stays, because a
 * merge would copy its data more than once. If none is, the point goes without a merge.
 *
 * @param points all points of a domain, oldest first, so that parents come before their children
 * @param keep ids of the points that the retention rules keep
 */
export function planPrune(points: readonly Manifest[], keep: ReadonlySet<string>): PrunePlan {
  const staying = new Set(keep);
  const needed = new Map<string, readonly string[]>();
  // For each disk of a point: the staying points whose chains reach it through dropped points only.
  const heirs = new Map<string, Set<string>>();
  const drop: string[] = [];
  // Newest first, so that children come before their parents.
  for (const point of points.toReversed()) {
    const wanted = new Set(point.disks.flatMap(({ name }) => [...(heirs.get(key(point.id, name)) ?? [])]));
    const shared = point.disks.some(({ name }) => (heirs.get(key(point.id, name))?.size ?? 0) > 1);
    if (!staying.has(point.id) && shared) {
      staying.add(point.id);
      needed.set(point.id, [...wanted].sort());
    }
    const stays = staying.has(point.id);
    if (!stays) drop.unshift(point.id);
    for (const { name, parent } of point.disks) {
      if (parent === null) continue;
      const passed = stays ? [point.id] : [...(heirs.get(key(point.id, name)) ?? [])];
      const at = key(parent, name);
      heirs.set(at, new Set([...(heirs.get(at) ?? []), ...passed]));
    }
  }
  return { drop, needed, merges: mergesOf(points, staying) };
}

/**
 * Bytes that the merges take over if each is into the image that has most. It takes no look into the images,
 * so that threads can start before that.
 */
export function mostBytes(points: readonly Manifest[], { merges }: PrunePlan): number {
  const sizes = merges.map(({ disk, child, dropped }) => {
    const merged = new Set([child, ...dropped]);
    const disks = points.flatMap((point) => (merged.has(point.id) ? point.disks : []));
    const bytes = disks.filter(({ name }) => name === disk).map(({ storedBytes }) => storedBytes);
    return bytes.reduce((total, each) => total + each, 0) - Math.max(0, ...bytes);
  });
  return sizes.reduce((total, each) => total + each, 0);
}

function mergesOf(points: readonly Manifest[], staying: ReadonlySet<string>): Merge[] {
  const parents = new Map(points.flatMap(({ id, disks }) => disks.map((d) => [key(id, d.name), d.parent])));
  const merges: Merge[] = [];
  for (const { id: child, disks } of points) {
    if (!staying.has(child)) continue;
    for (const { name: disk, parent } of disks) {
      const dropped: string[] = [];
      for (let id = parent; id !== null && !staying.has(id); id = parents.get(key(id, disk)) ?? null) {
        dropped.push(id);
      }
      if (dropped.length > 0) merges.push({ disk, child, dropped });
    }
  }
  return merges;
}

function key(point: string, disk: string): string {
  return `${point}/${disk}`;
}
