import type { Manifest } from "../repository/manifest.js";

/** What becomes of a domain's points. */
export interface PrunePlan {
  /** Points that go, oldest first. */
  readonly drop: readonly string[];
  /** Points that nobody asked to keep, and who stands on them: several, so there is no one image to merge them into. */
  readonly needed: ReadonlyMap<string, readonly string[]>;
  readonly merges: readonly Merge[];
}

/** A disk of a point that stays, and the points right below it that go. */
export interface Merge {
  readonly disk: string;
  /** The point that takes over what the dropped ones held. */
  readonly child: string;
  /** Newest first, each the parent of the one before it. */
  readonly dropped: readonly string[];
}

/**
 * Works out what can go. A dropped point on which just one chain of kept points stands is merged into it, disk by
 * disk; one on which several stand (differentials, siblings) stays as it is, since any merge would copy its data
 * more than once. What no kept point needs goes without a merge.
 *
 * @param points all points of a domain, oldest first; parents are older than what is based on them
 */
export function planPrune(points: readonly Manifest[], keep: ReadonlySet<string>): PrunePlan {
  const staying = new Set(keep);
  const needed = new Map<string, readonly string[]>();
  // For each disk of a point: the staying points whose chains come to it first, over dropped ones only.
  const heirs = new Map<string, Set<string>>();
  const drop: string[] = [];
  // Newest first: all that is based on a point has been looked at before it.
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
