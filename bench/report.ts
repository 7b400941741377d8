/** Result files as Markdown. Pure. */

import {
  type BenchResult,
  type ContenderResult,
  type Metric,
  type Target,
  valuesOf,
  type WorkloadResult,
} from "./result.js";
import { pairwiseRatios, type Spread, type Standing, spreadOf, standingOf, verdictOf } from "./statistics.js";

/** A bound on one contender, and how it stands. */
export interface JudgedTarget {
  readonly workload: string;
  readonly target: Target;
  /** Left out where a contender was missing or failed. */
  readonly value?: Spread;
  readonly standing: Standing | "not measured";
}

export function judgeTargets({ workloads }: Pick<BenchResult, "workloads">): JudgedTarget[] {
  return workloads.flatMap((workload) => workload.targets.map((target) => judge(workload, target)));
}

function judge(workload: WorkloadResult, target: Target): JudgedTarget {
  const contender = measuredContender(workload, target.contender);
  const other = target.against === undefined ? undefined : measuredContender(workload, target.against);
  const named = { workload: workload.name, target };
  if (contender === undefined || (target.against !== undefined && other === undefined)) {
    return { ...named, standing: "not measured" };
  }
  const value =
    other === undefined
      ? spreadOf(valuesOf(contender, target.metric))
      : ratiosOf(contender, other, target.metric);
  return { ...named, value, standing: standingOf(value, target.atMost) };
}

/** The contender of this name, if it has figures. */
export function measuredContender({ contenders }: WorkloadResult, name: string): ContenderResult | undefined {
  return contenders.find((contender) => contender.name === name && contender.runs.length > 0);
}

function ratiosOf(contender: ContenderResult, other: ContenderResult, metric: Metric): Spread {
  return pairwiseRatios(valuesOf(contender, metric), valuesOf(other, metric));
}

/** What everything was measured on and with: one paragraph. */
export function circumstances({ machine, versions, settings }: BenchResult): string {
  const { cpu, cores, memoryGiB, kernel, fileSystem } = machine;
  const tools = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  const size = settings.scale === 1 ? "" : ` Sizes × ${settings.scale}: good for trying out only.`;
  const used = settings.usedServers
    ? " Before each of them QEMU's server has answered one read of 8 MiB."
    : "";
  return [
    `${cores} × ${cpu}, ${memoryGiB} GiB, Linux ${kernel}; inputs and outputs on ${fileSystem}.`,
    `Medians of ${settings.runs} interleaved runs after a warm-up.${used}${size}`,
    `${tools.join("; ")}.`,
  ].join(" ");
}

/** One workload: its table, and what the figures don't show. */
export function workloadReport(workload: WorkloadResult): string {
  const reference = measuredContender(workload, workload.reference);
  const counts = workload.contenders.some(({ outside }) => outside) ? OUTSIDE : TRAFFIC;
  const hasReads = workload.contenders.some(({ runs }) => runs.some(({ readMs }) => readMs !== undefined));
  const jobs = workload.contenders.find(({ outside }) => outside?.jobs)?.outside?.jobs;
  const rows = workload.contenders
    .filter(({ runs }) => runs.length > 0)
    .map((contender) => [
      ...row(contender, reference),
      ...(hasReads ? [spread(spreadOf(valuesOf(contender, "read")))] : []),
      ...counts.of(contender),
      ...(jobs === undefined ? [] : [number(spreadOf(valuesOf(contender, "wall")).median / jobs)]),
    ]);
  const lines = [`### ${workload.title}`, "", workload.about, ""];
  if (rows.length > 0) {
    lines.push(
      table(
        [
          workload.name,
          "wall s",
          `× ${workload.reference}`,
          "",
          "CPU s",
          "× CPU",
          "server CPU s",
          "peak RSS MiB",
          ...(hasReads ? ["ms for a read"] : []),
          ...counts.names,
          ...(jobs === undefined ? [] : [`wall s for each of ${jobs}`]),
        ],
        rows,
      ),
    );
  }
  if (workload.rounds !== undefined) {
    lines.push("", `There was time for ${workload.rounds} of the rounds only.`);
  }
  for (const { name, state, reason } of workload.contenders) {
    if (state !== "measured") lines.push("", `${name} is ${state}: ${reason ?? ""}`);
  }
  return `${lines.join("\n")}\n`;
}

function row(contender: ContenderResult, reference: ContenderResult | undefined): string[] {
  const seconds = (metric: Metric): string => number(spreadOf(valuesOf(contender, metric)).median);
  const ratios = (metric: Metric): Spread | undefined =>
    reference === undefined ? undefined : ratiosOf(contender, reference, metric);
  const wall = ratios("wall");
  const isReference = contender === reference;
  return [
    contender.name,
    seconds("wall"),
    wall === undefined ? "–" : isReference ? "1" : spread(wall),
    wall === undefined || isReference ? "" : VERDICTS[verdictOf(wall)],
    seconds("cpu"),
    isReference ? "1" : spread(ratios("cpu")),
    seconds("server"),
    Math.max(...valuesOf(contender, "rss")).toFixed(0),
  ];
}

/** The columns of what was counted in a run that isn't timed. */
interface Counts {
  readonly names: readonly string[];
  of(contender: ContenderResult): string[];
}

const TRAFFIC: Counts = {
  names: ["requests", "round trips"],
  of: ({ traffic }) =>
    traffic === undefined
      ? ["–", "–"]
      : [String(traffic.reads + traffic.blockStatus + traffic.others), String(traffic.roundTrips)],
};

const OUTSIDE: Counts = {
  names: ["calls to libvirt", "processes"],
  of: ({ outside }) => [String(outside?.libvirtCalls ?? "–"), String(outside?.processes ?? "–")],
};

const VERDICTS = { less: "faster", more: "slower", none: "no difference", open: "too few runs" } as const;

const MEASURED = { wall: "wall time", cpu: "CPU time", rss: "memory", read: "ms for a read" } as const;

export function targetsReport(result: Pick<BenchResult, "workloads">): string {
  const judged = judgeTargets(result);
  const rows = judged
    .filter(({ target }) => target.metric !== "rss")
    .map(({ workload, target, value, standing }) => [
      workload,
      target.contender,
      MEASURED[target.metric],
      target.against ?? "",
      `≤ ${target.atMost.toFixed(2)}`,
      spread(value),
      standing,
    ]);
  const table_ =
    rows.length === 0
      ? ""
      : table(["workload", "contender", "of", "against", "target", "measured", ""], rows);
  const memory = judged.filter(({ target, value }) => target.metric === "rss" && value !== undefined);
  if (memory.length === 0) return `${table_}\n`;
  const most = memory.reduce((a, b) => ((a.value?.max ?? 0) >= (b.value?.max ?? 0) ? a : b));
  const over = memory.filter(({ target, value }) => (value?.max ?? 0) > target.atMost);
  const excess = over.map(
    ({ workload, target, value }) => `${target.contender} in ${workload} (${value?.max.toFixed(0)} MiB)`,
  );
  return [
    table_,
    "",
    `Peak RSS, target ≤ ${most.target.atMost} MiB: at most ${most.value?.max.toFixed(0)} MiB, in ${most.workload}.${
      excess.length > 0 ? ` Over it: ${excess.join(", ")}.` : ""
    }`,
    "",
  ].join("\n");
}

/** Median, and smallest and largest in brackets. */
export function spread(value: Spread | undefined): string {
  if (value === undefined || Number.isNaN(value.median)) return "–";
  return `${value.median.toFixed(2)} (${value.min.toFixed(2)}–${value.max.toFixed(2)})`;
}

/** Three digits that mean something. */
function number(value: number): string {
  return value < 0.1 ? value.toFixed(3) : value.toFixed(2);
}

export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  return [line(head), `|${head.map(() => "---").join("|")}|`, ...rows.map(line)].join("\n");
}
