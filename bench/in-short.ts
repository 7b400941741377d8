/** What a reader of the page is told first: nbdpull's wall time as a fraction of its peers'. Pure. */

import { measuredContender, table } from "./report.js";
import { type BenchResult, type Metric, valuesOf, type WorkloadResult } from "./result.js";
import { ENOUGH_ROUNDS, pairwiseRatios, type Spread } from "./statistics.js";

/** A ratio that some result has. */
interface Ratio {
  readonly workload: string;
  readonly contender: string;
  readonly against: string;
  readonly metric?: Metric;
}

interface Line extends Ratio {
  readonly says: string;
}

const LIBVIRT = { contender: "nbdpull backup", against: "virtnbdbackup" };
const FULL: Ratio = { workload: "libvirt-full", ...LIBVIRT };
const INCREMENT: Ratio = { workload: "libvirt-incremental", ...LIBVIRT };
const CPU: Ratio = { ...INCREMENT, metric: "cpu" };
const RESTORE: Ratio = {
  workload: "libvirt-restore",
  contender: "nbdpull restore qcow2",
  against: "virtnbdrestore",
};

const LINES: readonly Line[] = [
  { says: "a libvirt domain, backed up in full", ...FULL },
  { says: "an increment of it", ...INCREMENT },
  { says: "the same, processor time", ...CPU },
  { says: "a disk restored from both", ...RESTORE },
  { says: "a full pull to a raw image", workload: "full-raw", contender: "nbdpull raw", against: "nbdcopy" },
  {
    says: "the same, with SHA-256 digests",
    workload: "full-raw",
    contender: "nbdpull raw --digests",
    against: "nbdcopy",
  },
  {
    says: "the same, without digests",
    workload: "full-raw",
    contender: "nbdpull raw",
    against: "cp --sparse=always",
  },
  {
    says: "a full pull to a qcow2 image, with SHA-256 digests",
    workload: "full-qcow2",
    contender: "nbdpull qcow2 --digests",
    against: "qemu-img convert qcow2",
  },
  { says: "a full pull by TLS", workload: "tls", contender: "nbdpull raw", against: "nbdcopy" },
  {
    says: "6,000 scattered changes",
    workload: "scattered",
    contender: "nbdpull raw",
    against: "minimal C client",
  },
  {
    says: "a restore of eleven points, which proves each byte",
    workload: "restore-chain",
    contender: "nbdpull restore raw",
    against: "qemu-img convert raw",
  },
  {
    says: "the same of compressed points",
    workload: "restore-compressed",
    contender: "nbdpull restore raw",
    against: "qemu-img convert raw",
  },
  {
    says: "a prune, which proves what it copies",
    workload: "prune",
    contender: "nbdpull prune",
    against: "qemu-img commit",
  },
  {
    says: "a whole disk to an object store, with SHA-256 digests",
    workload: "store-backup",
    contender: "nbdpull attach",
    against: "SDK upload of a file",
  },
];

/** One row for each line that any result has, one column for each version of Node. */
export function inShort(results: readonly BenchResult[]): string {
  const nodes = [...new Set(results.map(majorOf))].sort((a, b) => Number(b) - Number(a));
  const rows = LINES.flatMap((line) => {
    const cells = nodes.map((node) => {
      const ratios = results.filter((result) => majorOf(result) === node).map((each) => ratioOf(each, line));
      const ratio = ratios.find((each) => each !== undefined);
      return ratio === undefined ? "–" : withRounds(ratio);
    });
    return cells.every((cell) => cell === "–") ? [] : [[line.says, line.against, ...cells]];
  });
  const hasFew = rows.some((cells) => cells.some((cell) => cell.endsWith(" rounds)")));
  const parts = [table(["", "as a fraction of the time of", ...nodes.map((node) => `Node ${node}`)], rows)];
  if (hasFew)
    parts.push(
      `Fewer than ${ENOUGH_ROUNDS} rounds decide nothing: where there were no more, their number is given.`,
    );
  return parts.join("\n\n");
}

/** The median, of what it is, and of how many rounds if they are few. */
function withRounds(ratio: Spread, of = ""): string {
  return `${ratio.median.toFixed(2)}${of}${isUndecided(ratio) ? ` (${ratio.count} rounds)` : ""}`;
}

function isUndecided({ count }: Spread): boolean {
  return count < ENOUGH_ROUNDS;
}

/** The sentence of the README about whole backups: of each kind that there is a result of. */
export function readmeSentence(libvirt: BenchResult | undefined): string {
  const ratioOfLine = (line: Ratio): Spread | undefined => libvirt && ratioOf(libvirt, line);
  const [full, increment, cpu, restore] = [FULL, INCREMENT, CPU, RESTORE].map(ratioOfLine);
  const kinds = [
    full && `a full backup took ${withRounds(full, " of its time")}`,
    increment && `an increment ${withRounds(increment, " of its time")}`,
    cpu && `and ${cpu.median.toFixed(2)} of its processor time`,
    restore && `a restore ${withRounds(restore, " of its time")}`,
  ].filter((each) => each !== undefined);
  const link = "[measured side by side](docs/performance.md)";
  if (kinds.length === 0) return listItem(`**It is ${link}** with its peers.`);
  const told = kinds.join(", ").replaceAll(", and ", " and ");
  const isFew = [full, increment, restore].some((ratio) => ratio !== undefined && isUndecided(ratio));
  const few = isFew ? ` Fewer than ${ENOUGH_ROUNDS} rounds decide nothing.` : "";
  return listItem(`**It is fast.** On one machine, beside virtnbdbackup: ${told} (${link}).${few}`);
}

/** Wrapped as the README is. */
function listItem(text: string): string {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines.at(-1) ?? "";
    if (last.length + word.length < 138) lines[lines.length - 1] = last === "" ? word : `${last} ${word}`;
    else lines.push(word);
  }
  return `- ${lines.join("\n  ")}`;
}

function majorOf({ versions }: BenchResult): string {
  return (versions["Node"] ?? "").split(".")[0] ?? "";
}

function ratioOf({ workloads }: BenchResult, line: Ratio): Spread | undefined {
  const workload = workloads.find(({ name }) => name === line.workload);
  const { contender, against, metric = "wall" } = line;
  const values = (name: string): number[] | undefined => valuesIn(workload, name, metric);
  const [ours, theirs] = [values(contender), values(against)];
  return ours && theirs && pairwiseRatios(ours, theirs);
}

function valuesIn(workload: WorkloadResult | undefined, name: string, metric: Metric): number[] | undefined {
  const contender = workload && measuredContender(workload, name);
  return contender && valuesOf(contender, metric);
}
