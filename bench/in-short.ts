/** What a reader of the page is told first: nbdpull's wall time in parts of its peers'. Pure. */

import { measuredContender, table } from "./report.js";
import { type BenchResult, type Metric, valuesOf, type WorkloadResult } from "./result.js";
import { pairwiseRatios, type Spread } from "./statistics.js";

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
const RESTORE: Ratio = {
  workload: "libvirt-restore",
  contender: "nbdpull restore qcow2",
  against: "virtnbdrestore",
};

const LINES: readonly Line[] = [
  { says: "a libvirt domain, backed up in full", ...FULL },
  { says: "an increment of it", ...INCREMENT },
  { says: "the same, processor time", ...INCREMENT, metric: "cpu" },
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
      return ratios.find((ratio) => ratio !== undefined)?.median.toFixed(2) ?? "–";
    });
    return cells.every((cell) => cell === "–") ? [] : [[line.says, line.against, ...cells]];
  });
  return table(["", "in parts of the time of", ...nodes.map((node) => `Node ${node}`)], rows);
}

/** The sentence of the README about whole backups. */
export function readmeSentence(libvirt: BenchResult | undefined): string {
  const [full, increment, restore] = [FULL, INCREMENT, RESTORE].map((line) => {
    const ratio = libvirt && ratioOf(libvirt, line);
    return ratio?.median.toFixed(2);
  });
  if (full === undefined || increment === undefined || restore === undefined)
    throw new Error("the README tells of whole backups: there is no result of all three of them");
  return [
    `- **It is fast.** A full backup takes ${full} of virtnbdbackup's time, an increment ${increment}, a restore ${restore}`,
    "  ([measured side by side](docs/performance.md)).",
  ].join("\n");
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
