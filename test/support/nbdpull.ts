import { readdir, readlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { expect } from "vitest";

/** The built program, as a user runs it. */
export const NBDPULL = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "dist", "bin", "nbdpull.js");

export interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  /** The parsed standard output. */
  readonly json: () => unknown;
}

export interface Running {
  readonly pid: number;
  readonly kill: (signal: NodeJS.Signals) => void;
  /** The outcome; undefined if a signal killed the process. */
  readonly ended: Promise<Ran | undefined>;
}

/** Runs `nbdpull` to its end, with any exit code. */
export async function nbdpull(...args: readonly string[]): Promise<Ran> {
  return await finished(startNbdpull(args));
}

export interface StartOptions {
  /** Standard input; by default a pipe without data. */
  readonly input?: string;
  /** Environment variables in addition to the test's. */
  readonly env?: Readonly<Record<string, string>>;
  /** A command that prepares an environment and then executes the program given after it. */
  readonly inside?: readonly string[];
  /** Another Node than the one that runs the tests. */
  readonly node?: string;
  /** Commands that add points make the repository, as most tests have none before. Default: true. */
  readonly create?: boolean;
}

/** Commands that add points to a repository. */
const ADDING = ["backup", "attach", "import"];

/** Starts `nbdpull`; for tests that kill it. */
export function startNbdpull(
  args: readonly string[],
  { inside = [], node = process.execPath, create = true, ...options }: StartOptions = {},
): Running {
  const isAdding = create && ADDING.includes(args[0] ?? "") && args.includes("--to");
  const all = isAdding ? [...args, "--create"] : args;
  const [program = node, ...rest] = [...inside, node, NBDPULL, ...all];
  // What a signal began is waited for, and never cut short by a SIGKILL that no test asked for.
  const child = execa(program, rest, { ...options, reject: false, forceKillAfterDelay: false });
  const ended = child.then(({ exitCode, stdout, stderr }): Ran | undefined =>
    exitCode === undefined
      ? undefined
      : { code: exitCode, stdout, stderr, json: () => JSON.parse(stdout) as unknown },
  );
  return { pid: child.pid ?? 0, kill: (signal) => child.kill(signal), ended };
}

export async function finished(run: Running): Promise<Ran> {
  const ran = await run.ended;
  if (!ran) throw new Error("nbdpull was killed");
  return ran;
}

/** Waits until the process has opened a file with this in its path. */
export async function untilOpen({ pid }: Running, name: string): Promise<void> {
  const open = async (): Promise<string[]> => {
    const folder = `/proc/${pid}/fd`;
    const links = (await readdir(folder)).map((fd) => readlink(join(folder, fd)).catch(() => ""));
    return await Promise.all(links);
  };
  await expect.poll(open).toContainEqual(expect.stringContaining(name));
}
