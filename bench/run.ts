/**
 * The bench harness: the same work by nbdpull and by its peers, side by side in one run. See bench/README.md.
 */

import { existsSync, rmSync } from "node:fs";
import { mkdtemp, open, rm, statfs, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { printable, printableLines } from "../src/backup/base/printable.js";
import { Inputs } from "./inputs.js";
import { describeMachine, fileSystemOf, versions } from "./machine.js";
import { build } from "./measure.js";
import { demand, PROGRAMS } from "./programs.js";
import { circumstances, targetsReport, workloadReport } from "./report.js";
import type { BenchResult, WorkloadResult } from "./result.js";
import { runWorkload } from "./runner.js";
import { HELP, type Settings, settingsOf } from "./settings.js";
import { WORKLOADS } from "./workloads/index.js";

const GiB = 1024 ** 3;
/** Inputs and outputs of the largest workload, at scale 1. */
const ROOM_BYTES = 16 * GiB;

/** Memory, where there is enough of it: a disk's own mood would drown the differences. */
async function placeToWork(scale: number): Promise<string> {
  const chosen = process.env["BENCH_DIR"];
  if (chosen !== undefined) return chosen;
  const { bavail, bsize } = await statfs("/dev/shm").catch(() => ({ bavail: 0, bsize: 0 }));
  return bavail * bsize >= ROOM_BYTES * scale ? "/dev/shm" : tmpdir();
}

/**
 * Leaves no empty file where there was none: one that a run which fails later has left would be taken for a result.
 *
 * @throws where the result could not be written hours later
 */
async function demandWritable(path: string): Promise<void> {
  const isNew = !existsSync(path);
  // Nothing that it holds is lost before there is something new.
  await (await open(path, "a")).close();
  if (isNew) await rm(path);
}

async function run(options: Settings): Promise<void> {
  if (options.json !== undefined) await demandWritable(options.json);
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
      settings: { runs: options.runs, scale: options.scale, usedServers: true },
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

/** The harness is started anew by that Node, so that it is the one that runs everything. */
async function runBy(node: string, args: readonly string[]): Promise<void> {
  const [, script = ""] = process.argv;
  const child = execa(node, [script, ...args], { stdio: "inherit", reject: false });
  const { exitCode, message } = await child;
  if (exitCode === undefined) throw new Error(message ?? `${node} can't be run`);
  process.exitCode = exitCode;
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
  const chosen = settingsOf(process.argv.slice(2));
  if (chosen === "help") process.stdout.write(HELP);
  else if (chosen === "list") list();
  else if ("node" in chosen) await runBy(chosen.node, chosen.args);
  else await run(chosen);
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`bench: ${printableLines(message)}\n`);
  process.exitCode = 1;
}
