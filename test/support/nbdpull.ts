import { readdir, readlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { expect } from "vitest";
import { type HostedRun, runInHost } from "./command-hosts.js";

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

/** They stay until they are ended, or change what holds for the rest of their process. */
const NEEDS_A_PROCESS = ["serve", "mount", "completion"];

/** Node reads these when it starts; the last one is for those who want to see each start. */
const OF_A_START = ["NODE_OPTIONS", "NBDPULL_TEST_PROCESSES"];

/** It reads these then too. A process that has run others has them as they were here at first. */
const INHERITED = ["NODE_EXTRA_CA_CERTS", "UV_THREADPOOL_SIZE", "SSL_CERT_FILE", "SSL_CERT_DIR"].map(
  (name) => [name, process.env[name]] as const,
);

/** Runs `nbdpull` to its end, with any exit code; see {@link runNbdpull}. */
export async function nbdpull(...args: readonly string[]): Promise<Ran> {
  return await runNbdpull(args);
}

/**
 * Runs `nbdpull` to its end, with any exit code. It is the built program, in a process that has run it before
 * unless the options ask for another one: {@link startNbdpull} starts one as a user does, and
 * `NBDPULL_TEST_PROCESSES=1` makes this do the same.
 */
export async function runNbdpull(args: readonly string[], options: StartOptions = {}): Promise<Ran> {
  const { env: added = {}, create = true, ...more } = options;
  const env = { ...process.env, ...added };
  const needsProcess =
    Object.keys(more).length > 0 ||
    NEEDS_A_PROCESS.includes(args[0] ?? "") ||
    args.some((arg) => arg === "-" || arg.startsWith("--color")) ||
    OF_A_START.some((name) => env[name] !== undefined) ||
    INHERITED.some(([name, value]) => env[name] !== value);
  if (needsProcess) return await finished(startNbdpull(args, options));
  const words = create ? completed(args) : args;
  const { code, stdout, stderr } = await runInHost([NBDPULL, ...words], { env });
  const ran = outcome({ code, stdout: withoutEnd(stdout), stderr: withoutEnd(stderr) });
  if (!ran) throw new Error("nbdpull was killed");
  return ran;
}

/** As execa has it. */
function withoutEnd(text: string): string {
  return text.endsWith("\n") ? text.slice(0, -1) : text;
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
  const all = create ? completed(args) : args;
  const [program = node, ...rest] = [...inside, node, NBDPULL, ...all];
  // What a signal began is waited for, and never cut short by a SIGKILL that no test asked for.
  const child = execa(program, rest, { ...options, reject: false, forceKillAfterDelay: false });
  const ended = child.then(({ exitCode: code, stdout, stderr }) => outcome({ code, stdout, stderr }));
  return { pid: child.pid ?? 0, kill: (signal) => child.kill(signal), ended };
}

function completed(args: readonly string[]): readonly string[] {
  return ADDING.includes(args[0] ?? "") && args.includes("--to") ? [...args, "--create"] : args;
}

type Outcome = Omit<HostedRun, "code"> & { readonly code: number | null | undefined };

/** Undefined if a signal ended it. */
function outcome({ code, stdout, stderr }: Outcome): Ran | undefined {
  if (code === null || code === undefined) return undefined;
  return { code, stdout, stderr, json: () => JSON.parse(stdout) as unknown };
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
