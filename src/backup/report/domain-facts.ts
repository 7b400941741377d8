import type { JudgedPoint, Obstacle } from "../repository/judged-points.js";
import { timeOf, timeOfPointId } from "../repository/manifest.js";
import type { DomainPoints } from "./domain-points.js";

const DAY_MS = 24 * 3600 * 1000;
/** A rate a day is told if what it comes from covers an hour at least. */
const SHORTEST_MS = 3600 * 1000;

/** What a report says of a point. Sizes in bytes. */
export interface PointFacts {
  readonly id: string;
  /** ISO 8601; that of its id, if its manifest can't be read. */
  readonly createdAt: string;
  /** Null, like `changedBytes`, if the manifest can't be read. */
  readonly level: "full" | "incremental" | null;
  /** What the backup took: all of a full disk, what was changed of an increment. */
  readonly changedBytes: number | null;
  readonly storedBytes: number;
  /** Images that a restore reads of the disk that needs most, its own included. */
  readonly chainLength: number;
  readonly restorable: boolean;
  /** Why it can't be restored, and from which damage that follows. */
  readonly obstacles: readonly Obstacle[];
}

/** Where a domain stands, the worst first. */
export type DomainState =
  /** No point can be restored. */
  | "lost"
  /** The newest point can't be restored, or others can't. */
  | "damaged"
  /** Its last good point is older than was promised. */
  | "late"
  | "good";

/** What a report says of a domain. Sizes in bytes. */
export interface DomainFacts {
  readonly folder: string;
  readonly name: string;
  readonly uuid: string | null;
  /** Whether the folder has points of other domains too. */
  readonly isMixed: boolean;
  readonly state: DomainState;
  /** The newest point that can be restored. */
  readonly lastGood: Pick<PointFacts, "id" | "createdAt"> | null;
  /** Of the last good point. Negative: it was made later than now, by a clock that was wrong or is. */
  readonly ageSeconds: number | null;
  /** Whether that is more than was promised. */
  readonly isLate: boolean;
  /** All disks, as the guest sees them. */
  readonly virtualBytes: number;
  /** What all points would take if each were a full copy of its disks. */
  readonly logicalBytes: number;
  /** What all points take. */
  readonly storedBytes: number;
  /** How many times less than `logicalBytes` is stored; null: nothing is stored. */
  readonly ratio: number | null;
  /** How much the points made since the oldest one take, for each day since. Null: it can't be told yet. */
  readonly growthPerDay: number | null;
  /** What was changed on the disks for each day that increments cover. Null: as above. */
  readonly changedPerDay: number | null;
  /** Of the last good point; 0 if there is none. */
  readonly chainLength: number;
  readonly unrestorable: number;
  /** Oldest first. */
  readonly points: readonly PointFacts[];
}

/**
 * @param now in milliseconds since 1970
 * @param maxAgeSeconds what was promised; undefined: nothing, so that no domain is late
 */
export function factsOf(
  { points: judged, ...domain }: DomainPoints,
  { now, maxAgeSeconds }: { readonly now: number; readonly maxAgeSeconds?: number | undefined },
): DomainFacts {
  const points = pointFacts(judged);
  const disks = judged.flatMap(({ manifest }) => manifest?.disks ?? []);
  const lastGood = points.findLast(({ restorable }) => restorable);
  const ageSeconds = lastGood === undefined ? null : (now - Date.parse(lastGood.createdAt)) / 1000;
  const isLate = maxAgeSeconds !== undefined && ageSeconds !== null && ageSeconds > maxAgeSeconds;
  const unrestorable = points.filter(({ restorable }) => !restorable).length;
  const newest = judged.findLast(({ manifest }) => manifest)?.manifest;
  const logicalBytes = sum(disks, ({ virtualSize }) => virtualSize);
  const storedBytes = sum(points, (point) => point.storedBytes);
  return {
    ...domain,
    state: lastGood === undefined ? "lost" : unrestorable > 0 ? "damaged" : isLate ? "late" : "good",
    lastGood: lastGood ? { id: lastGood.id, createdAt: lastGood.createdAt } : null,
    ageSeconds,
    isLate,
    virtualBytes: sum(newest?.disks ?? [], ({ virtualSize }) => virtualSize),
    logicalBytes,
    storedBytes,
    ratio: storedBytes === 0 ? null : logicalBytes / storedBytes,
    growthPerDay: growthOf(points),
    changedPerDay: changeOf(judged),
    chainLength: lastGood?.chainLength ?? 0,
    unrestorable,
    points,
  };
}

function pointFacts(judged: readonly JudgedPoint[]): PointFacts[] {
  /** Images below and including that of a disk, by point and disk. */
  const lengths = new Map<string, number>();
  return judged.map(({ id, manifest, obstacles }) => {
    // Parents are older, so theirs are there.
    for (const { name, parent } of manifest?.disks ?? []) {
      lengths.set(`${id}/${name}`, 1 + (parent === null ? 0 : (lengths.get(`${parent}/${name}`) ?? 0)));
    }
    const own = (manifest?.disks ?? []).map(({ name }) => lengths.get(`${id}/${name}`) ?? 0);
    return {
      id,
      createdAt: manifest?.createdAt ?? new Date(timeOfPointId(id)).toISOString(),
      level: manifest?.level ?? null,
      changedBytes: manifest ? sum(manifest.disks, ({ dirtyBytes }) => dirtyBytes) : null,
      storedBytes: sum(manifest?.disks ?? [], ({ storedBytes }) => storedBytes),
      chainLength: Math.max(0, ...own),
      restorable: obstacles.length === 0,
      obstacles,
    };
  });
}

function growthOf([first, ...later]: readonly PointFacts[]): number | null {
  const last = later.at(-1);
  if (!first || !last) return null;
  return perDay(
    sum(later, ({ storedBytes }) => storedBytes),
    Date.parse(last.createdAt) - Date.parse(first.createdAt),
  );
}

/** Disks are asked one by one, since each has its own parents; their rates add up. */
function changeOf(judged: readonly JudgedPoint[]): number | null {
  const times = new Map(judged.flatMap(({ id, manifest }) => (manifest ? [[id, timeOf(manifest)]] : [])));
  const byDisk = new Map<string, { bytes: number; span: number }>();
  for (const { manifest } of judged) {
    for (const { name, parent, dirtyBytes } of manifest?.disks ?? []) {
      const since = parent === null ? undefined : times.get(parent);
      if (!manifest || since === undefined) continue;
      const { bytes, span } = byDisk.get(name) ?? { bytes: 0, span: 0 };
      // A clock that was set back makes a span negative; all together they are still right.
      byDisk.set(name, { bytes: bytes + dirtyBytes, span: span + timeOf(manifest) - since });
    }
  }
  const rates = [...byDisk.values()].flatMap(({ bytes, span }) => perDay(bytes, span) ?? []);
  return rates.length === 0 ? null : sum(rates, (rate) => rate);
}

function perDay(bytes: number, span: number): number | null {
  return span < SHORTEST_MS ? null : bytes / (span / DAY_MS);
}

function sum<T>(list: readonly T[], of: (each: T) => number): number {
  return list.reduce((total, each) => total + of(each), 0);
}

/** What domains have together. Sizes in bytes. */
export interface Totals
  extends Pick<
    DomainFacts,
    "virtualBytes" | "logicalBytes" | "storedBytes" | "ratio" | "growthPerDay" | "changedPerDay"
  > {
  readonly domains: number;
  readonly points: number;
  readonly unrestorable: number;
}

export function totalsOf(domains: readonly DomainFacts[]): Totals {
  const rate = (of: (each: DomainFacts) => number | null): number | null => {
    const known = domains.flatMap((domain) => of(domain) ?? []);
    return known.length === 0 ? null : sum(known, (each) => each);
  };
  const logicalBytes = sum(domains, (domain) => domain.logicalBytes);
  const storedBytes = sum(domains, (domain) => domain.storedBytes);
  return {
    domains: domains.length,
    points: sum(domains, ({ points }) => points.length),
    unrestorable: sum(domains, ({ unrestorable }) => unrestorable),
    virtualBytes: sum(domains, ({ virtualBytes }) => virtualBytes),
    logicalBytes,
    storedBytes,
    ratio: storedBytes === 0 ? null : logicalBytes / storedBytes,
    growthPerDay: rate((domain) => domain.growthPerDay),
    changedPerDay: rate((domain) => domain.changedPerDay),
  };
}
