import type { JudgedPoint } from "../repository/judged-points.js";
import { type Manifest, timeOf } from "../repository/manifest.js";

export type WhichPoints = "all" | "latest" | { readonly since: Date };

/** Both oldest first. */
export interface ChosenPoints {
  /** What is copied, or compared if both have it. */
  readonly points: readonly JudgedPoint[];
  /** Ids of points that were copied before and have been removed there since. They are left out. */
  readonly dropped: readonly string[];
}

/**
 * Chooses which points are wanted, and adds what they are based on. What the other repository has brings its
 * own bases along: a prune there may have merged it, and then it needs nothing below.
 * @param judged the points of the repository that is copied, oldest first
 * @param there those of the other one
 * @param copied the ids of points that it has got before
 */
export function choosePoints(
  judged: readonly JudgedPoint[],
  there: readonly JudgedPoint[],
  which: WhichPoints | undefined,
  copied: ReadonlySet<string>,
): ChosenPoints {
  const theirs = new Map(there.map((point) => [point.id, point]));
  const matching = judged.filter((point) => matches(point, which, judged));
  const dropped = new Set(which === "all" ? [] : droppedOf(matching, there, copied));
  const wanted = new Set(matching.filter(({ id }) => !dropped.has(id)).map(({ id }) => id));
  for (const { id, manifest } of judged.toReversed()) {
    if (!wanted.has(id)) continue;
    for (const base of basesOf(theirs.get(id)?.manifest ?? manifest)) wanted.add(base);
  }
  return {
    points: judged.filter(({ id }) => wanted.has(id)),
    dropped: [...dropped].filter((id) => !wanted.has(id)),
  };
}

function matches(
  { id, manifest }: JudgedPoint,
  which: WhichPoints | undefined,
  all: readonly JudgedPoint[],
): boolean {
  if (which === undefined || which === "all") return true;
  if (which === "latest") return id === all.at(-1)?.id;
  return manifest === undefined || timeOf(manifest) >= which.since.getTime();
}

/**
 * What was there and is not any more. A prune leaves the newest point where it is, so one that is newer than
 * all that are there was lost in another way; and so was one on which something there is based.
 */
function droppedOf(
  points: readonly JudgedPoint[],
  there: readonly JudgedPoint[],
  copied: ReadonlySet<string>,
): string[] {
  const known = new Set(there.map(({ id }) => id));
  const needed = new Set(there.flatMap(({ manifest }) => basesOf(manifest)));
  const newest = there.at(-1)?.id ?? "";
  return points
    .map(({ id }) => id)
    .filter((id) => copied.has(id) && !known.has(id) && !needed.has(id) && id < newest);
}

function basesOf(manifest: Manifest | undefined): string[] {
  return (manifest?.disks ?? []).flatMap(({ parent }) => parent ?? []);
}
