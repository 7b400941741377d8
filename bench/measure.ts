import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { z } from "zod";
import { benchFile } from "./paths.js";
import type { RunResult } from "./result.js";
import type { Command } from "./workload.js";

/** What the harness compiles for itself. */
export interface Built {
  readonly measure: string;
  readonly minimalClient: string;
  readonly untilRequest: string;
}

export async function build(folder: string): Promise<Built> {
  await mkdir(folder, { recursive: true });
  const compile = async (name: string): Promise<string> => {
    const program = join(folder, name);
    await execa("cc", ["-O2", "-Wall", "-o", program, benchFile("c", `${name}.c`)]);
    return program;
  };
  const [measure, minimalClient, untilRequest] = await Promise.all([
    compile("measure"),
    compile("minimal-client"),
    compile("until-request"),
  ]);
  return { measure, minimalClient, untilRequest };
}

const reportSchema = z.object({
  wallSeconds: z.number(),
  userSeconds: z.number(),
  systemSeconds: z.number(),
  peakRssKiB: z.number(),
  exitCode: z.number(),
  signal: z.number(),
});

/**
 * Node 20 reads all these certificates at its start, which takes it 45 ms: a matter of how a machine reaches
 * the internet, and not of any work here.
 */
const ENVIRONMENT = { NODE_EXTRA_CA_CERTS: undefined };

export interface MeasureOptions {
  readonly built: Built;
  /** Left out where nothing is served. */
  readonly serverPid: number | undefined;
  /** Where the runner may leave its report. */
  readonly scratch: string;
  readonly timeoutMs: number;
}

/**
 * Runs a command to its end. CPU time and peak RSS are those that the kernel reports by wait4 to a small C
 * program that starts the command: a Node parent would pass its own peak RSS to the child between fork and
 * exec.
 *
 * @throws an error with the end of the command's output if it fails
 */
export async function measure(command: Command, options: MeasureOptions): Promise<RunResult> {
  const report = join(options.scratch, "measured.json");
  const before = await cpuSecondsOf(options.serverPid);
  const runner = await execa(
    options.built.measure,
    ["-s", command.stdout ?? "/dev/null", "-o", report, "--", command.program, ...command.args],
    { reject: false, stdin: "ignore", timeout: options.timeoutMs, env: ENVIRONMENT },
  );
  if (runner.timedOut) throw new Error(`did not end within ${(options.timeoutMs / 1000).toFixed(0)} s`);
  if (runner.exitCode !== 0) throw new Error(lastLines(runner.stderr));
  const measured = reportSchema.parse(JSON.parse(await readFile(report, "utf8")));
  if (measured.exitCode !== 0) {
    throw new Error(`exit code ${measured.exitCode}: ${lastLines(runner.stderr)}`);
  }
  const { wallSeconds, userSeconds, systemSeconds, peakRssKiB } = measured;
  const serverSeconds = Math.max((await cpuSecondsOf(options.serverPid)) - before, 0);
  return { wallSeconds, userSeconds, systemSeconds, serverSeconds, peakRssKiB };
}

/** What /proc counts CPU time in: USER_HZ, 100 on every Linux architecture that Node runs on. */
const TICKS_PER_SECOND = 100;

/** User and system time of all threads of a process so far, also of those that have ended. */
async function cpuSecondsOf(pid: number | undefined): Promise<number> {
  if (pid === undefined) return 0;
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  // Fields 14 and 15; the name in field 2 may hold blanks.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) / TICKS_PER_SECOND;
}

function lastLines(text: string): string {
  const lines = text.trim().split("\n");
  return lines.slice(-3).join(" / ").slice(-500) || "it has said nothing";
}
