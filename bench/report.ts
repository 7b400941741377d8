/** Result files as Markdown. Pure. */

import {
  type BenchResult,
  type ContenderResult,
  type Metric,
  type Target,
  valuesOf,
  type WorkloadResult,
} from "./result.js";
import {
  pairwiseRatios,
  type Spread,
  type Standing,
  spreadOf,
  standingOf,
  standingOfAll,
  verdictOf,
} from "./statistics.js";

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
  const standing = target.metric === "rss" ? standingOfAll : standingOf;
  return { ...named, value, standing: standing(value, target.atMost) };
}

/** The contender of this name, if it has figures. */
export function measuredContender({ contenders }: WorkloadResult, name: string): ContenderResult | undefined {
  return contenders.find((contender) => contender.name === name && contender.runs.length > 0);
}

function ratiosOf(contender: ContenderResult, other: ContenderResult, metric: Metric): Spread {
  return pairwiseRatios(valuesOf(contender, metric), valuesOf(other, metric));
}

/** What everything was measured on and with: one paragraph. */
export function circumstances(result: BenchResult): string {
  const { machine, versions, settings, workloads, startedAt, lastStartedAt } = result;
  const { cpu, cores, memoryGiB, kernel, fileSystem } = machine;
  const days = [...new Set([startedAt, lastStartedAt ?? startedAt].map(dayOf))].join(" to ");
  const tools = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  const size = settings.scale === 1 ? "" : ` Sizes × ${settings.scale}: good for trying out only.`;
  const used = settings.usedServers
    ? " Before each of them QEMU's server has answered one read of 8 MiB."
    : "";
  return [
    `${days}: ${cores} × ${cpu}, ${memoryGiB} GiB, Linux ${kernel}; inputs and outputs on ${fileSystem}.`,
    `Medians of ${roundsIn(workloads) ?? `up to ${settings.runs}`} interleaved runs after a warm-up.${used}${size}`,
    `${tools.join("; ")}.`,
  ].join(" ");
}

/** "30 November 2026", by UTC. */
function dayOf(time: string): string {
  const options = { day: "numeric", month: "long", year: "numeric", timeZone: "UTC" } as const;
  return new Intl.DateTimeFormat("en-GB", options).format(new Date(time));
}

/** How many rounds each contender has had, at most. */
export function roundsOf({ contenders }: WorkloadResult): number {
  return Math.max(0, ...contenders.map(({ runs }) => runs.length));
}

/** "3 to 5", or undefined before anything was measured. */
function roundsIn(workloads: readonly WorkloadResult[]): string | undefined {
  const counts = workloads.map(roundsOf);
  if (counts.length === 0) return undefined;
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  return least === most ? `${most}` : `${least} to ${most}`;
}

/** One workload: its table, and what the figures don't show. */
export function workloadReport(workload: WorkloadResult): string {
  return `### ${workload.title}\n\n${workload.about}\n\n${workloadFigures(workload)}`;
}

/** The table of a workload, and below it what is not in it. */
export function workloadFigures(workload: WorkloadResult): string {
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
  const head = [
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
  ];
  const parts = rows.length > 0 ? [table(head, rows)] : [];
  if (workload.rounds === 0) parts.push("There was no time for a whole round.");
  else if (workload.rounds !== undefined)
    parts.push(`There was time for ${workload.rounds} of the rounds only.`);
  for (const { name, state, reason } of workload.contenders) {
    if (state !== "measured") parts.push(`${name} is ${state}: ${reason ?? ""}`);
  }
  return `${parts.join("\n\n")}\n`;
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

/** What a target is about: a ratio to its peer, or a figure by itself. */
function measureOf({ metric, against }: Target): string {
  if (against !== undefined) return RATIOS[metric];
  return FIGURES[metric];
}

const RATIOS = { wall: "wall time", cpu: "CPU time", rss: "memory", read: "time of a read" } as const;
const FIGURES = { wall: "wall s", cpu: "CPU s", rss: "peak RSS MiB", read: "ms for a read" } as const;

export function targetsReport(result: Pick<BenchResult, "workloads">): string {
  const rows = judgeTargets(result).map((judged) => [
    judged.workload,
    ...targetCells(judged.target),
    measuredCell(judged),
    judged.standing,
  ]);
  if (rows.length === 0) return "";
  return `${table(["workload", ...TARGET_HEAD, "measured", ""], rows)}\n`;
}

export const TARGET_HEAD = ["contender", "of", "against", "target"] as const;

/** What a target says, for {@link TARGET_HEAD}. */
export function targetCells(target: Target): string[] {
  return [target.contender, measureOf(target), target.against ?? "", `≤ ${shown(target.atMost, target)}`];
}

/** What was measured of a target, in as many digits as show on which side of it that is. */
export function measuredCell({ target, value }: JudgedTarget): string {
  if (value === undefined || Number.isNaN(value.median)) return "–";
  if (target.metric === "rss") return value.max.toFixed(digitsToTell(value.max, target));
  const figures = [value.median, value.min, value.max];
  return spread(value, Math.max(...figures.map((figure) => digitsToTell(figure, target))));
}

/** Of a figure beside its target: more than else where both would look alike, up to three more. */
function digitsToTell(figure: number, target: Target): number {
  const usual = digitsOf(target);
  if (figure === target.atMost) return usual;
  const looksAlike = (digits: number): boolean => figure.toFixed(digits) === target.atMost.toFixed(digits);
  return [0, 1, 2].map((more) => usual + more).find((digits) => !looksAlike(digits)) ?? usual + 3;
}

function shown(value: number, target: Target): string {
  return value.toFixed(digitsOf(target));
}

/** Memory in whole MiB, seconds in thousandths; ratios and times of a read in hundredths. */
function digitsOf({ metric, against }: Target): number {
  if (metric === "rss") return 0;
  return against === undefined && metric !== "read" ? 3 : 2;
}

/** Median, and smallest and largest in brackets. */
export function spread(value: Spread | undefined, digits = 2): string {
  if (value === undefined || Number.isNaN(value.median)) return "–";
  const [median, min, max] = [value.median, value.min, value.max].map((each) => each.toFixed(digits));
  return `${median} (${min}–${max})`;
}

/** Three digits that mean something. */
function number(value: number): string {
  return value < 0.1 ? value.toFixed(3) : value.toFixed(2);
}

export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  return [line(head), `|${head.map(() => "---").join("|")}|`, ...rows.map(line)].join("\n");
}
