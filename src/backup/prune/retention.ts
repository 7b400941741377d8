/**
 * How many points to keep. Rules count as in restic's `forget`: each by itself, and a point stays if any rule
 * keeps it.
 */
export interface Retention {
  readonly last?: number | undefined;
  readonly daily?: number | undefined;
  /** ISO weeks, which begin on Monday. */
  readonly weekly?: number | undefined;
  readonly monthly?: number | undefined;
}

type Rule = keyof Retention;

/** Why a point stays: a rule, or its time is later than now, so that no rule can tell whether it may go. */
type Reason = Rule | "ahead of the clock";

/** In the order in which reasons are reported. */
const RULES: readonly Rule[] = ["last", "daily", "weekly", "monthly"];

/**
 * Decides which points stay, and by which rules. A rule for `n` days keeps the newest point of each of the
 * latest `n` days that have points. Days, weeks and months are those of the local time zone.
 *
 * Where a rule goes by time, points that were made later than now stay and are not counted: a clock was
 * wrong.
 *
 * @param points in the order in which they were made, which their times need not be in; `time` in
 *   milliseconds since 1970
 * @param now in milliseconds since 1970
 * @returns the ids to keep, each with the rules that keep it
 */
export function keptBy(
  points: readonly { readonly id: string; readonly time: number }[],
  retention: Retention,
  now: number,
): Map<string, Reason[]> {
  const kept = new Map<string, Reason[]>();
  const keep = ({ id }: { readonly id: string }, reason: Reason): void => {
    kept.set(id, [...(kept.get(id) ?? []), reason]);
  };
  const newestFirst = points.toReversed();
  for (const rule of RULES) {
    const most = retention[rule] ?? 0;
    const periods = new Set<string>();
    for (const point of newestFirst) {
      if (rule !== "last" && point.time > now) continue;
      const period = periodOf(rule, point);
      if (periods.size === most) break;
      if (periods.has(period)) continue;
      periods.add(period);
      keep(point, rule);
    }
  }
  const goesByTime = RULES.some((rule) => rule !== "last" && (retention[rule] ?? 0) > 0);
  if (goesByTime) for (const point of newestFirst) if (point.time > now) keep(point, "ahead of the clock");
  return kept;
}

function periodOf(rule: Rule, { id, time }: { readonly id: string; readonly time: number }): string {
  const date = new Date(time);
  const [year, month, day] = [date.getFullYear(), date.getMonth(), date.getDate()];
  switch (rule) {
    case "last":
      return id;
    case "daily":
      return `${year}-${month}-${day}`;
    case "weekly": {
      // The Monday identifies the week.
      const monday = new Date(year, month, day - ((date.getDay() + 6) % 7));
      return `${monday.getFullYear()}-${monday.getMonth()}-${monday.getDate()}`;
    }
    case "monthly":
      return `${year}-${month}`;
    default:
      return rule satisfies never;
  }
}
