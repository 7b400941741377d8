import { mkdir, open, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { storedBytes } from "./images.js";
import type { Inputs } from "./inputs.js";
import { type Built, measure } from "./measure.js";
import { countOutside } from "./outside.js";
import { PROJECT } from "./paths.js";
import { missingOf } from "./programs.js";
import { CountingRelay } from "./relay.js";
import type { ContenderResult, Outside, RunResult, Traffic, WorkloadResult } from "./result.js";
import { withAddress } from "./servers.js";
import type { Command, Contender, Scene, Source, Task, Workload } from "./workload.js";

export interface RunnerOptions {
  readonly folder: string;
  readonly built: Built;
  readonly inputs: Inputs;
  readonly scale: number;
  /** Measured rounds; the warm-up comes on top. */
  readonly runs: number;
  /**
   * For the whole workload, its inputs and the warm-up among it: nothing begins afterwards, and a round that
   * was begun doesn't count. A single command that takes as long has failed.
   */
  readonly limitMs: number;
  /** Which contenders take part. */
  readonly takesPart: (contender: string) => boolean;
  readonly say: (what: string) => void;
}

interface Entry {
  readonly contender: Contender;
  state: ContenderResult["state"];
  reason?: string;
  command?: string;
  verified?: string;
  traffic?: Traffic;
  outside?: Outside;
  readonly runs: RunResult[];
  /** Of its outputs, after the warm-up. */
  outputBytes: number;
}

/**
 * Runs one workload: a warm-up round in which every result is verified and what can be counted is counted,
 * then the measured rounds, A B C A B C, so that drift of the machine affects all alike.
 */
export async function runWorkload(workload: Workload, options: RunnerOptions): Promise<WorkloadResult> {
  const folder = join(options.folder, "work");
  await mkdir(folder, { recursive: true });
  try {
    await options.inputs.beginWorkload(workload.name);
    const entries = await Promise.all(
      workload.contenders.filter(({ name }) => options.takesPart(name)).map(entryOf),
    );
    await runRounds(workload, entries, folder, options).catch((error: unknown) => {
      // Without its server no contender can run; the other workloads can.
      for (const entry of able(entries)) fail(entry, error);
    });
    return resultOf(workload, entries, options.runs);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function runRounds(
  workload: Workload,
  entries: readonly Entry[],
  folder: string,
  options: RunnerOptions,
): Promise<void> {
  if (able(entries).length === 0) return;
  const bench: Bench = { ...options, workload, work: folder, endsAt: performance.now() + options.limitMs };
  options.say("making the inputs");
  const counted = await firstLook(bench);

  for (const entry of able(entries)) {
    if (isOver(bench)) return;
    options.say(`warming up${COUNTING[counted]}: ${entry.contender.name}`);
    await attempt(entry, () => warmUp(entry, bench, counted));
  }
  let lastRoundMs = 0;
  for (let round = 1; round <= options.runs; round += 1) {
    const began = performance.now();
    if (began + lastRoundMs > bench.endsAt) return;
    if (!(await runRound(round, able(entries), bench))) {
      for (const { runs } of entries) runs.splice(round - 1);
      return;
    }
    lastRoundMs = performance.now() - began;
  }
}

/** @returns false where the time was over before its end */
async function runRound(round: number, entries: readonly Entry[], bench: Bench): Promise<boolean> {
  for (const entry of entries) {
    if (isOver(bench)) return false;
    bench.say(`round ${round} of ${bench.runs}: ${entry.contender.name}`);
    await attempt(entry, async () => {
      await using scene = await setUp(bench);
      entry.runs.push((await runOnce(entry, taskOf(scene, bench), scene, bench)).result);
    });
  }
  return true;
}

function isOver({ endsAt }: Bench): boolean {
  return performance.now() > endsAt;
}

/** What the runs of a workload have in common. */
interface Bench extends RunnerOptions {
  readonly workload: Workload;
  readonly work: string;
  /** By `performance.now()`. */
  readonly endsAt: number;
}

/** A new server for every run: none finds what another has left in its memory. */
function setUp({ workload, work, inputs, scale }: Bench): Promise<Scene> {
  return workload.setUp({ folder: work, inputs, scale });
}

type Counted = "requests" | "calls" | "nothing";

const COUNTING: Readonly<Record<Counted, string>> = {
  requests: ", counting requests",
  calls: ", counting calls to libvirt",
  nothing: "",
};

/**
 * What can be counted of this workload: requests only over Unix sockets without TLS, calls to libvirt where
 * domains are backed up. Makes the inputs first.
 */
async function firstLook(bench: Bench): Promise<Counted> {
  await using scene = await setUp(bench);
  if (scene.guest ?? scene.guests) return "calls";
  const [first] = scene.sources;
  return first !== undefined && first.at.kind === "unix" && first.tls === undefined ? "requests" : "nothing";
}

type Setting = Pick<Scene, "sources" | "stored" | "guest" | "guests">;

function taskOf({ sources, stored, guest, guests }: Setting, { work, built }: Bench): Task {
  return {
    sources,
    ...(stored && { stored }),
    ...(guest && { guest }),
    ...(guests && { guests }),
    output: join(work, "output"),
    built,
  };
}

async function entryOf(contender: Contender): Promise<Entry> {
  const missing = await missingOf(contender.needs);
  const entry: Entry = { contender, state: "measured", runs: [], outputBytes: 0 };
  if (missing.length === 0) return entry;
  return {
    ...entry,
    state: "missing",
    reason: missing.map(({ name, install }) => `${name}: ${install}`).join("; "),
  };
}

function able(entries: readonly Entry[]): Entry[] {
  return entries.filter(({ state }) => state === "measured");
}

/** A contender that fails once is out, with what it said; the others go on. */
async function attempt(entry: Entry, step: () => Promise<void>): Promise<void> {
  try {
    await step();
  } catch (error) {
    fail(entry, error);
  }
}

function fail(entry: Entry, error: unknown): void {
  entry.state = "failed";
  entry.reason = error instanceof Error ? error.message : String(error);
}

/** The run that isn't timed: so what slows it down, as the relays do, may be in its way. */
async function warmUp(entry: Entry, bench: Bench, counted: Counted): Promise<void> {
  const { contender } = entry;
  await using scene = await setUp(bench);
  const task = taskOf(scene, bench);
  const command =
    counted === "requests"
      ? await countTraffic(entry, scene, bench)
      : counted === "calls"
        ? await countCalls(entry, task, bench)
        : (await runOnce(entry, task, scene, bench)).command;
  const files = await readdir(task.output, { recursive: true, withFileTypes: true });
  for (const file of files) {
    if (file.isFile()) entry.outputBytes += await storedBytes(join(file.parentPath, file.name));
  }
  entry.verified = await contender.verify(task, command);
  entry.command = [command.program, ...command.args]
    .map((word) => word.replaceAll(bench.folder, "…").replaceAll(PROJECT, "…"))
    .join(" ");
}

interface Ran {
  readonly command: Command;
  readonly result: RunResult;
}

async function runOnce(entry: Entry, task: Task, scene: Scene, bench: Bench): Promise<Ran> {
  await emptyFolder(task.output);
  const command = await entry.contender.command(task);
  const { built, folder } = bench;
  const { serverPid } = scene;
  const crumbs = await touchMemory(folder, entry.outputBytes);
  try {
    const options = { built, serverPid, scratch: folder, timeoutMs: bench.limitMs };
    const result = await measure(command, options);
    const readMs = await entry.contender.readMs?.(command);
    return { command, result: { ...result, ...(readMs !== undefined && { readMs }) } };
  } finally {
    await rm(crumbs);
  }
}

async function emptyFolder(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true });
  await mkdir(path, { recursive: true });
}

const MiB = 1024 * 1024;
const PAGE = 4096;

/**
 * Allocates as much memory as the output will need and frees it, except for one page (crumb) in each MiB,
 * which stays until the run is over. A virtual machine may return free memory to its host, even within a
 * second, and getting it back takes longer than the copy itself: the first contender after a pause, or a slow
 * one, would pay for that. Only large free blocks are returned, and there are none between crumbs.
 *
 *     written    |touched ......|c|touched ......|c|touched ......|c|
 *     kept                       c                c                c
 *
 * @returns the file of the crumbs
 */
async function touchMemory(folder: string, bytes: number): Promise<string> {
  const path = join(folder, "touched");
  const crumbsPath = join(folder, "crumbs");
  const piece = Buffer.alloc(MiB - PAGE, 1);
  const crumb = Buffer.alloc(PAGE, 1);
  const [file, crumbs] = [await open(path, "w"), await open(crumbsPath, "w")];
  try {
    for (let done = 0; done < bytes; done += MiB) {
      await file.write(piece);
      await crumbs.write(crumb);
    }
    // Nothing that was written before may be on its way to a disk while the clock runs.
    await file.datasync();
    await crumbs.datasync();
  } finally {
    await file.close();
    await crumbs.close();
    await rm(path);
  }
  return crumbsPath;
}

/** One run through the relay. */
async function countTraffic(entry: Entry, scene: Scene, bench: Bench): Promise<Command> {
  const [first] = scene.sources;
  if (first?.at.kind !== "unix") throw new Error("requests are counted over Unix sockets only");
  const socket = join(bench.folder, "relay.sock");
  await using relay = await CountingRelay.listen(socket, first.at.socket);
  const throughRelay = (source: Source): Source => withAddress({ ...source, at: { kind: "unix", socket } });
  const task = taskOf({ ...scene, sources: scene.sources.map(throughRelay) }, bench);
  const { command } = await runOnce(entry, task, scene, bench);
  entry.traffic = relay.traffic;
  return command;
}

async function countCalls(entry: Entry, task: Task, bench: Bench): Promise<Command> {
  await emptyFolder(task.output);
  const { command, outside } = await countOutside(entry.contender, task, bench.folder, bench.limitMs);
  entry.outside = outside;
  return command;
}

function resultOf(workload: Workload, entries: readonly Entry[], asked: number): WorkloadResult {
  const { name, title, about, reference, targets } = workload;
  const measured = able(entries);
  const rounds = Math.max(0, ...measured.map(({ runs }) => runs.length));
  return {
    name,
    title,
    about,
    reference,
    ...(rounds < asked && measured.length > 0 ? { rounds } : {}),
    targets: [...targets],
    contenders: entries.map(({ contender, outputBytes: _, ...rest }) => ({
      name: contender.name,
      ...rest,
      runs: rest.state === "measured" ? rest.runs : [],
    })),
  };
}
