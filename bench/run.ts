/**
 * The bench harness: the same work by nbdpull and by its peers, side by side in one run. See bench/README.md.
 *
 *     npm run bench -- [--only PATTERN[,PATTERN]] [--contenders PATTERN[,PATTERN]] [--runs N] [--scale 0..1]
 *                      [--json FILE] [--list]
 */

import { rmSync } from "node:fs";
import { mkdtemp, statfs, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { printable, printableLines } from "../src/backup/base/printable.js";
import { Inputs } from "./inputs.js";
import { describeMachine, fileSystemOf, versions } from "./machine.js";
import { build } from "./measure.js";
import { demand, PROGRAMS } from "./programs.js";
import { circumstances, targetsReport, workloadReport } from "./report.js";
import type { BenchResult, WorkloadResult } from "./result.js";
import { runWorkload } from "./runner.js";
import type { Workload } from "./workload.js";
import { WORKLOADS } from "./workloads/index.js";

const GiB = 1024 ** 3;
/** Inputs and outputs of the largest workload, at scale 1. */
const ROOM_BYTES = 16 * GiB;

interface Settings {
  readonly workloads: readonly Workload[];
  readonly takesPart: (contender: string) => boolean;
  readonly runs: number;
  readonly scale: number;
  readonly json: string | undefined;
}

function settings(): Settings | "list" {
  const { values } = parseArgs({
    options: {
      only: { type: "string" },
      contenders: { type: "string" },
      runs: { type: "string", default: "7" },
      scale: { type: "string", default: "1" },
      json: { type: "string" },
      list: { type: "boolean", default: false },
    },
  });
  if (values.list) return "list";
  const runs = Number(values.runs);
  const scale = Number(values.scale);
  if (!Number.isInteger(runs) || runs < 1) throw new Error("--runs takes a number from 1 on");
  if (!(scale > 0 && scale <= 1)) throw new Error("--scale takes a number above 0, at most 1");
  const workloads = WORKLOADS.filter(({ name }) => matches(name, values.only));
  if (workloads.length === 0) throw new Error(`no workload is called ${values.only}: see --list`);
  return {
    workloads,
    takesPart: (contender) => matches(contender, values.contenders),
    runs,
    scale,
    json: values.json,
  };
}

/** Whether a name has one of the patterns in it. */
function matches(name: string, patterns: string | undefined): boolean {
  return patterns === undefined || patterns.split(",").some((pattern) => name.includes(pattern));
}

/** Memory, where there is enough of it: a disk's own mood would drown the differences. */
async function placeToWork(scale: number): Promise<string> {
  const chosen = process.env["BENCH_DIR"];
  if (chosen !== undefined) return chosen;
  const { bavail, bsize } = await statfs("/dev/shm").catch(() => ({ bavail: 0, bsize: 0 }));
  return bavail * bsize >= ROOM_BYTES * scale ? "/dev/shm" : tmpdir();
}

async function run(options: Settings): Promise<void> {
  await demand(PROGRAMS.cc, PROGRAMS.qemuImg, PROGRAMS.qemuIo);
  const place = await placeToWork(options.scale);
  const folder = await mkdtemp(join(place, "nbdpull-bench-"));
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  process.once("exit", remove);
  try {
    say(`working in ${folder} (${await fileSystemOf(folder)})`);
    const built = await build(join(folder, "built"));
    const inputs = new Inputs(join(folder, "inputs"), options.scale);
    const done: WorkloadResult[] = [];
    const result: BenchResult = {
      format: 1,
      startedAt: new Date().toISOString(),
      machine: await describeMachine(folder),
      versions: await versions(),
      settings: { runs: options.runs, scale: options.scale },
      workloads: done,
    };
    print(`${circumstances(result)}\n\n`);
    for (const workload of options.workloads) {
      const tell = (what: string): void => say(`${workload.name}: ${what}`);
      done.push(await runWorkload(workload, { ...options, folder, built, inputs, say: tell }));
      print(`${workloadReport(done.at(-1) as WorkloadResult)}\n`);
      // After each workload: what was measured is not lost with the next one.
      if (options.json !== undefined) await writeFile(options.json, `${JSON.stringify(result, null, 1)}\n`);
    }
    print(`### Targets\n\n${targetsReport(result)}`);
  } finally {
    remove();
  }
}

/** On a terminal each word takes the place of the one before. */
function say(what: string): void {
  const { isTTY } = process.stderr;
  const text = `bench: ${printable(what)}`;
  process.stderr.write(isTTY ? `\r\x1b[K${text}` : `${text}\n`);
}

/** The result goes below what was said last. */
function print(text: string): void {
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  process.stdout.write(printableLines(text));
}

function list(): void {
  const lines = WORKLOADS.flatMap(({ name, title, contenders }) => [
    `${name}: ${title}`,
    ...contenders.map((contender) => `    ${contender.name}`),
  ]);
  process.stdout.write(`${lines.join("\n")}\n`);
}

// An orderly exit: servers and clients are ended then, and the folder is removed.
process.once("SIGINT", () => process.exit(130));
process.once("SIGTERM", () => process.exit(143));

try {
  const chosen = settings();
  if (chosen === "list") list();
  else await run(chosen);
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`bench: ${printableLines(message)}\n`);
  process.exitCode = 1;
}
