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

/** In the order in which reasons are reported. */
const RULES: readonly Rule[] = ["last", "daily", "weekly", "monthly"];

/**
 * Decides which points stay, and by which rules. A rule for `n` days keeps the newest point of each of the
 * latest `n` days that have points. Days, weeks and months are those of the local time zone.
 *
 * @param points oldest first; `time` in milliseconds since 1970
 * @returns the ids to keep, each with the rules that keep it
 */
export function keptBy(
  points: readonly { readonly id: string; readonly time: number }[],
  retention: Retention,
): Map<string, Rule[]> {
  const kept = new Map<string, Rule[]>();
  for (const rule of RULES) {
    let left = retention[rule] ?? 0;
    let latest: string | undefined;
    for (const point of points.toReversed()) {
      const period = periodOf(rule, point);
      if (left === 0) break;
      if (period === latest) continue;
      latest = period;
      left -= 1;
      kept.set(point.id, [...(kept.get(point.id) ?? []), rule]);
    }
  }
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
