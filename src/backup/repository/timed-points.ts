import { UsageError } from "../base/errors.js";
import { isPointId, timeOf, timeOfPointId } from "./manifest.js";
import { ownersOf } from "./point-owners.js";
import type { Repository } from "./repository.js";

/** What is known of a point in order to choose it. */
export interface TimedPoint {
  readonly id: string;
  /** When it was made, in milliseconds since 1970; that of its id, if its manifest can't be read. */
  readonly time: number;
  /** The domain that it is of; null: unknown; undefined: its manifest can't be read. */
  readonly owner: string | null | undefined;
}

/** What the user asks for: a point by its id, the newest one, or the newest not made after a time. */
export type Wanted =
  | { readonly kind: "id"; readonly id: string }
  | { readonly kind: "latest" }
  /** In milliseconds since 1970. */
  | { readonly kind: "time"; readonly time: number };

/** All points of a folder, oldest first. */
export async function timedPoints(repository: Repository, folder: string): Promise<TimedPoint[]> {
  const ids = await repository.pointIds(folder);
  const points = await repository.points(folder, () => undefined);
  const owners = ownersOf(points);
  const times = new Map(points.map((point) => [point.id, timeOf(point)]));
  return ids.map((id) => ({ id, time: times.get(id) ?? timeOfPointId(id), owner: owners.get(id) }));
}

/**
 * The point that is wanted, if it is there. Ids tell which point is newest, because they sort as points were
 * made. Times need not: a clock may have been wrong for a while.
 * @param points oldest first
 */
export function pick(points: readonly TimedPoint[], wanted: Wanted): TimedPoint | undefined {
  switch (wanted.kind) {
    case "id":
      return points.find(({ id }) => id === wanted.id);
    case "latest":
      return points.at(-1);
    case "time":
      return points
        .filter(({ time }) => time <= wanted.time)
        .reduce<TimedPoint | undefined>(
          (best, point) => (best && best.time > point.time ? best : point),
          undefined,
        );
    default:
      return wanted satisfies never;
  }
}

/**
 * Times that users can give. A time without a zone is local. Date.parse alone would accept nearly anything.
 */
const ISO_TIME = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,3})?)?(Z|[+-]\d\d:\d\d)?)?$/;

/** Whether the day exists. Date.parse takes the 30th of February for a day in March. */
function isCalendarDay(day: string): boolean {
  const date = new Date(`${day}T00:00Z`);
  return !Number.isNaN(date.getTime()) && date.toISOString().startsWith(day);
}

/** @throws {UsageError} `E_BAD_POINT`: `at` is not an id, a time, or `latest` */
export function wantedBy(at: string): Wanted {
  if (at === "latest") return { kind: "latest" };
  if (isPointId(at)) return { kind: "id", id: at };
  // Date.parse would take a date alone for midnight UTC.
  const text = at.includes("T") ? at : `${at}T00:00`;
  const time = ISO_TIME.test(at) && isCalendarDay(at.slice(0, 10)) ? Date.parse(text) : Number.NaN;
  if (!Number.isNaN(time)) return { kind: "time", time };
  const message = `"${at}" is neither a point's id, nor a time such as 2026-11-20T11:32 or 2026-11-20T11:32:05Z, nor latest`;
  throw new UsageError("E_BAD_POINT", message);
}
