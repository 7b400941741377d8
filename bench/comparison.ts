/**
 * Two results side by side, so that the effect of a change can be seen. Pure.
 *
 * Runs of two result files were not made side by side, and the speed of the machine may have changed in
 * between. So two figures are shown for each contender: its own time, and its ratio to the workload's
 * reference, which the change has not touched. Trust a difference that both show.
 */

import { measuredContender, spread, table } from "./report.js";
import {
  type BenchResult,
  type ContenderResult,
  type Metric,
  valuesOf,
  type WorkloadResult,
} from "./result.js";
import { pairwiseRatios, type Spread, spreadOf, type Verdict, verdictBetween } from "./statistics.js";

export interface Comparison {
  readonly workload: string;
  readonly contender: string;
  readonly metric: Metric;
  readonly before: Spread;
  readonly after: Spread;
  /** Ratios to the reference. */
  readonly beforeRatio: Spread;
  readonly afterRatio: Spread;
  readonly verdict: Verdict;
}

export function compare(before: BenchResult, after: BenchResult, metric: Metric): Comparison[] {
  return after.workloads.flatMap((workload) => {
    const earlier = before.workloads.find(({ name }) => name === workload.name);
    if (earlier === undefined) return [];
    return workload.contenders.flatMap((contender) => {
      const then = measuredContender(earlier, contender.name);
      if (then === undefined || contender.runs.length === 0) return [];
      return [compareContender(earlier, then, workload, contender, metric)];
    });
  });
}

function compareContender(
  earlier: WorkloadResult,
  then: ContenderResult,
  workload: WorkloadResult,
  now: ContenderResult,
  metric: Metric,
): Comparison {
  const before = spreadOf(valuesOf(then, metric));
  const after = spreadOf(valuesOf(now, metric));
  return {
    workload: workload.name,
    contender: now.name,
    metric,
    before,
    after,
    beforeRatio: ratioToReference(earlier, then, metric),
    afterRatio: ratioToReference(workload, now, metric),
    verdict: verdictBetween(before, after),
  };
}

function ratioToReference(workload: WorkloadResult, contender: ContenderResult, metric: Metric): Spread {
  const reference = measuredContender(workload, workload.reference);
  return pairwiseRatios(
    valuesOf(contender, metric),
    reference === undefined ? [] : valuesOf(reference, metric),
  );
}

const VERDICTS = { less: "less", more: "more", none: "no difference", open: "too few runs" } as const;
const UNITS = {
  wall: "wall s",
  cpu: "CPU s",
  server: "server CPU s",
  rss: "peak RSS MiB",
  read: "ms for a read",
} as const;

export function comparisonReport(before: BenchResult, after: BenchResult, metric: Metric): string {
  const rows = compare(before, after, metric).map((one) => [
    one.workload,
    one.contender,
    spread(one.before),
    spread(one.after),
    `${one.after.median >= one.before.median ? "+" : ""}${percent(one.after.median / one.before.median - 1)}`,
    VERDICTS[one.verdict],
    spread(one.beforeRatio),
    spread(one.afterRatio),
  ]);
  const head = ["", UNITS[metric], "before", "after", "change", "", "× reference before", "after"];
  return `${table(head, rows)}\n`;
}

function percent(value: number): string {
  return Number.isFinite(value) ? `${(value * 100).toFixed(0)} %` : "–";
}

/** What makes two results hard to compare. */
export function differences(before: BenchResult, after: BenchResult): string[] {
  const found: string[] = [];
  const note = (what: string, a: unknown, b: unknown): void => {
    if (a !== b) found.push(`${what}: ${String(a)} before, ${String(b)} after`);
  };
  for (const key of ["cpu", "cores", "kernel", "fileSystem"] as const) {
    note(key, before.machine[key], after.machine[key]);
  }
  note("scale", before.settings.scale, after.settings.scale);
  for (const name of new Set([...Object.keys(before.versions), ...Object.keys(after.versions)])) {
    note(name, before.versions[name], after.versions[name]);
  }
  return found;
}
