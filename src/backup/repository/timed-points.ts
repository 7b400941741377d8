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

/**
 * What the user asks for: a point by its id or the beginning of that, the newest one, or the newest not made
 * after a time.
 */
type Wanted =
  | { readonly kind: "id"; readonly id: string }
  /** The only one whose id begins so. */
  | { readonly kind: "prefix"; readonly prefix: string }
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
 * @throws {UsageError} `E_BAD_POINT`: several ids begin so
 */
export function pick(points: readonly TimedPoint[], wanted: Wanted): TimedPoint | undefined {
  switch (wanted.kind) {
    case "id":
      return points.find(({ id }) => id === wanted.id);
    case "prefix": {
      const found = points.filter(({ id }) => id.startsWith(wanted.prefix));
      if (found.length > 1) throw ambiguous(wanted.prefix, found);
      return found[0];
    }
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

/** Most ids that a message names. */
const NAMED = 5;

function ambiguous(prefix: string, found: readonly TimedPoint[]): UsageError {
  const ids = found.map(({ id }) => id);
  const more = ids.length > NAMED ? `, and ${ids.length - NAMED} more` : "";
  const message = `${ids.length} points begin with ${prefix} (${ids.slice(0, NAMED).join(", ")}${more}): give more of the id, or a time`;
  return new UsageError("E_BAD_POINT", message, { details: { points: ids } });
}

/**
 * Times that users can give, with the `T` of ISO 8601 or a space, as `points` prints them. A time without a
 * zone is local. Date.parse alone would accept nearly anything.
 */
const TIME = /^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d(?:\.\d{1,3})?)?(Z|[+-]\d\d:\d\d)?)?$/;
/** A point's id, from its day on. */
const PREFIX = /^\d{8}(T[\d.]{0,10}Z?)?$/;

/** Whether the day exists. Date.parse takes the 30th of February for a day in March. */
function isCalendarDay(day: string): boolean {
  const date = new Date(`${day}T00:00Z`);
  return !Number.isNaN(date.getTime()) && date.toISOString().startsWith(day);
}

/**
 * The last millisecond of the day, the minute or the second that a text names, so that a point is found by
 * the time that `points` shows of it.
 * @returns milliseconds since 1970; NaN: it names none
 */
function endOfTime(text: string): number {
  const [, day = "", minutes, seconds = "", zone = ""] = TIME.exec(text) ?? [];
  if (!isCalendarDay(day)) return Number.NaN;
  if (minutes === undefined) return Date.parse(`${day}T23:59:59.999`);
  if (seconds === "") return Date.parse(`${day}T${minutes}:59.999${zone}`);
  return Date.parse(`${day}T${minutes}${seconds.includes(".") ? seconds : `${seconds}.999`}${zone}`);
}

/** @throws {UsageError} `E_BAD_POINT`: `at` is not an id or its beginning, a time, or `latest` */
export function wantedBy(at: string): Wanted {
  if (at === "latest") return { kind: "latest" };
  if (isPointId(at)) return { kind: "id", id: at };
  if (PREFIX.test(at)) return { kind: "prefix", prefix: at };
  const time = endOfTime(at);
  if (!Number.isNaN(time)) return { kind: "time", time };
  const message = `"${at}" is neither a point's id or its beginning, nor a time such as 2026-11-20, "2026-11-20 11:32" or 2026-11-20T11:32:05Z, nor latest`;
  throw new UsageError("E_BAD_POINT", message);
}
