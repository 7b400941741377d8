/** The published page: what of it is made of results, as Markdown. Pure. */

import { inShort } from "./in-short.js";
import {
  circumstances,
  type JudgedTarget,
  judgeTargets,
  measuredCell,
  measuredContender,
  roundsOf,
  TARGET_HEAD,
  table,
  targetCells,
  targetsReport,
  workloadFigures,
} from "./report.js";
import { type BenchResult, type Target, valuesOf, type WorkloadResult } from "./result.js";
import { DATA_SECTIONS, OWN_SECTIONS, type Section } from "./sections.js";
import { pairwiseRatios, spreadOf } from "./statistics.js";
import { WORKLOADS } from "./workloads/index.js";
import { targetsOfStart } from "./workloads/start.js";

/** A median of fewer is none. */
const LEAST_ROUNDS = 3;

export type Results = ReadonlyMap<Section, BenchResult>;

/** The address of a plot, from the page. */
export type PlotOf = (section: Section, name: string) => string;

/** Only what had enough rounds, and what is missing for want of them, as sentences. */
export function publishable(result: BenchResult): { readonly result: BenchResult; readonly left: string[] } {
  const enough = (workload: WorkloadResult): boolean => roundsOf(workload) >= LEAST_ROUNDS;
  return {
    result: { ...result, workloads: inOrder(result.workloads.filter(enough)) },
    left: result.workloads
      .filter((workload) => !enough(workload))
      .map((workload) => `${workload.name}: ${roundsOf(workload)} of ${LEAST_ROUNDS} rounds`),
  };
}

function inOrder(workloads: readonly WorkloadResult[]): WorkloadResult[] {
  const place = ({ name }: WorkloadResult): number => WORKLOADS.findIndex((each) => each.name === name);
  return [...workloads].sort((a, b) => place(a) - place(b));
}

/**
 * Several runs of one section as one result: a workload that a later one has too is taken from the later one.
 *
 * @throws where they were not made on the same machine, by the same programs, of the same sizes, or with other
 *   servers
 */
export function combined(results: readonly BenchResult[]): BenchResult {
  const [first] = results;
  if (first === undefined) throw new Error("there is no result");
  const byName = new Map<string, WorkloadResult>();
  for (const result of results) {
    for (const [what, of] of Object.entries(ALIKE)) {
      if (JSON.stringify(of(result)) !== JSON.stringify(of(first)))
        throw new Error(`results with another ${what} are not of one section`);
    }
    for (const workload of result.workloads) byName.set(workload.name, workload);
  }
  const runs = Math.max(...results.map(({ settings }) => settings.runs));
  const times = results
    .flatMap(({ startedAt, lastStartedAt = startedAt }) => [startedAt, lastStartedAt])
    .sort();
  return {
    ...first,
    startedAt: times.at(0) ?? first.startedAt,
    lastStartedAt: times.at(-1) ?? first.startedAt,
    settings: { ...first.settings, runs },
    workloads: [...byName.values()],
  };
}

/** What results of one section have in common, by its name. */
const ALIKE: Readonly<Record<string, (result: BenchResult) => unknown>> = {
  machine: ({ machine }) => machine,
  versions: ({ versions }) => versions,
  scale: ({ settings }) => settings.scale,
  usedServers: ({ settings }) => settings.usedServers ?? false,
};

/** A result is judged by the targets of today, also if it was made when there were others. */
export function judgedToday(result: BenchResult): BenchResult {
  const workloads = result.workloads.map((workload) => ({
    ...workload,
    targets: [...(targetsOf(workload.name) ?? workload.targets)],
  }));
  return { ...result, workloads };
}

/** Starts are measured with each Node that is on the machine: the page may tell of others. */
function targetsOf(name: string): readonly Target[] | undefined {
  const [, version] = /^start-node-(.+)$/.exec(name) ?? [];
  if (version !== undefined) return targetsOfStart(version);
  return WORKLOADS.find((workload) => workload.name === name)?.targets;
}

/** A section, and what is published of it. */
interface Shown {
  readonly section: Section;
  readonly result: BenchResult;
}

/** By the name of its marker, all that is published of these results. */
export function partsOf(published: Results, plotOf: PlotOf): Map<string, string> {
  const results = new Map([...published].map(([section, result]) => [section, judgedToday(result)]));
  const data = DATA_SECTIONS.flatMap((section) => {
    const result = results.get(section);
    return result === undefined ? [] : [{ section, result }];
  });
  const own = OWN_SECTIONS.flatMap((section): [string, string][] => {
    const result = results.get(section);
    if (result === undefined) return [[section, NOTHING]];
    const shown =
      section === "start"
        ? startReport(result)
        : `${targetsPicture({ section, result }, plotOf)}\n\n${workloadsReport(result, section, plotOf)}`;
    return [[section, `${circumstances(result)}\n\n${targetsReport(result)}\n${shown}`]];
  });
  const shortly = [...data.map(({ result }) => result), ...OWN_SECTIONS.map((name) => results.get(name))];
  return new Map([
    ["in-short", inShort(shortly.filter((each) => each !== undefined))],
    ["circumstances", data.map(({ result }) => `- ${circumstances(result)}`).join("\n") || NOTHING],
    ["targets", data.length > 0 ? targetsSideBySide(data, plotOf) : NOTHING],
    ["workloads", workloadsSideBySide(data, plotOf) || NOTHING],
    ...own,
  ]);
}

const NOTHING = `There is no result of ${LEAST_ROUNDS} rounds yet.`;

function nodeOf({ versions }: BenchResult): string {
  return `Node ${versions["Node"] ?? "?"}`;
}

function targetsPicture({ section, result }: Shown, plotOf: PlotOf): string {
  return `![All targets, ${nodeOf(result)}](${plotOf(section, "targets")})`;
}

function targetsSideBySide(data: readonly Shown[], plotOf: PlotOf): string {
  const judged = data.map(({ result }) => judgeTargets(result));
  const keyOf = ({ workload, target }: JudgedTarget): string => [workload, ...targetCells(target)].join("|");
  const byKey = new Map(judged.flat().map((each) => [keyOf(each), each]));
  const place = ({ workload }: JudgedTarget): number => WORKLOADS.findIndex(({ name }) => name === workload);
  const rows = [...byKey]
    .sort(([, a], [, b]) => place(a) - place(b))
    .map(([key, { workload, target }]) => {
      const cells = judged.map((list) => {
        const one = list.find((each) => keyOf(each) === key);
        if (one?.value === undefined) return "–";
        return `${measuredCell(one)} ${one.standing}`;
      });
      return [workload, ...targetCells(target), ...cells];
    });
  const heads = data.map(({ result }) => nodeOf(result));
  const pictures = data.slice(0, 1).map((shown) => targetsPicture(shown, plotOf));
  const notRun = rows.some((cells) => cells.includes("–"))
    ? ["“–”: not run, or too few rounds to be published."]
    : [];
  return [table(["workload", ...TARGET_HEAD, ...heads], rows), ...notRun, ...pictures].join("\n\n");
}

/** Each workload once, with a table for each version of Node. */
function workloadsSideBySide(data: readonly Shown[], plotOf: PlotOf): string {
  const parts = WORKLOADS.flatMap(({ name, title, about }) => {
    const found = data.flatMap(({ section, result }) =>
      result.workloads.flatMap((workload) =>
        workload.name === name
          ? [`**${nodeOf(result)}**\n\n${workloadFigures(workload)}\n${picture(workload, section, plotOf)}`]
          : [],
      ),
    );
    return found.length === 0 ? [] : [`### ${title}\n\n${about}\n\n${found.join("\n\n")}`];
  });
  return parts.join("\n\n");
}

function workloadsReport({ workloads }: BenchResult, section: Section, plotOf: PlotOf): string {
  return workloads
    .map((workload) => {
      const figures = `${workloadFigures(workload)}\n${picture(workload, section, plotOf)}`;
      return `### ${workload.title}\n\n${workload.about}\n\n${figures}`;
    })
    .join("\n\n");
}

function picture({ name, title }: WorkloadResult, section: Section, plotOf: PlotOf): string {
  return `![${title}](${plotOf(section, name)})`;
}

/** All commands and all versions of Node in one table: wall time, and its ratio to Node's own. */
function startReport({ workloads }: BenchResult): string {
  const names = [...new Set(workloads.flatMap(({ contenders }) => contenders.map(({ name }) => name)))];
  const rows = names.map((name) => [
    name,
    ...workloads.map((workload) => {
      const contender = measuredContender(workload, name);
      const reference = measuredContender(workload, workload.reference);
      if (contender === undefined || reference === undefined) return "–";
      const wall = valuesOf(contender, "wall");
      const ratio = pairwiseRatios(wall, valuesOf(reference, "wall"));
      return `${spreadOf(wall).median.toFixed(3)} (${ratio.median.toFixed(2)})`;
    }),
  ]);
  const heads = workloads.map(({ name }) => name.replace(/^start-node-/, "Node "));
  const about = workloads[0]?.about ?? "";
  return `${about}\n\nWall seconds, and in brackets the ratio to \`node -e 0\`:\n\n${table(["", ...heads], rows)}`;
}
