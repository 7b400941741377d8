/**
 * What tells a process from all others, also from later ones with its number, on this host and others.
 *
 * Notes in folders of a host name its processes as `ProcessIdentity`. Objects in a store, which others read
 * too, name them as `SystemProcess`: there a host's name tells too little.
 */
import { readFile, readlink } from "node:fs/promises";
import { hostname } from "node:os";
import { z } from "zod";
import { hasCode } from "../base/errors.js";

export const BOOT_ID = "/proc/sys/kernel/random/boot_id";

export const processIdentity = z.object({
  host: z.string(),
  pid: z.number().int().positive(),
  /** Boot ID of the host, and start of the process. */
  startedAt: z.string(),
});
export type ProcessIdentity = z.infer<typeof processIdentity>;

export interface SystemProcess {
  readonly host: string;
  /**
   * The boot of its system, and the processes that it sees: numbers mean the same only where this is the
   * same.
   */
  readonly boot: string;
  readonly pid: number;
  /** When it began, in ticks after the boot. */
  readonly start: string;
}

export async function thisProcess(): Promise<ProcessIdentity> {
  const [boot, start] = await Promise.all([bootHere(), startOf(process.pid)]);
  const isKnown = boot !== undefined && start !== undefined;
  return { host: hostname(), pid: process.pid, startedAt: isKnown ? `${boot} ${start}` : "" };
}

/** This process; without what can't be told here. */
export async function thisSystemProcess(): Promise<Partial<SystemProcess>> {
  const [boot, start] = await Promise.all([systemHere(), startOf(process.pid)]);
  const known = boot === undefined || start === undefined ? {} : { boot, start };
  return { host: hostname(), pid: process.pid, ...known };
}

/** Whether it lives. A process of another host always counts as alive, and so does one that can't be seen. */
export async function isAlive({ host, pid, startedAt }: ProcessIdentity): Promise<boolean> {
  if (host !== hostname()) return true;
  const boot = await bootHere();
  const [itsBoot, start = ""] = startedAt.split(" ");
  return boot === undefined || (boot === itsBoot && !(await hasEnded(pid, start)));
}

/** Whether it was a process of this system, and has ended. False if that can't be told. */
export async function isDead({ boot, pid, start }: Partial<SystemProcess>): Promise<boolean> {
  if (boot === undefined || pid === undefined || start === undefined) return false;
  return boot === (await systemHere()) && (await hasEnded(pid, start));
}

/**
 * When a process started, in ticks after the boot of the host: field 22 of its `/proc/PID/stat`. The name in
 * parentheses may contain spaces, so fields are counted after it.
 */
export function startIn(stat: string): string {
  return fieldsIn(stat)[19] ?? "";
}

function fieldsIn(stat: string): string[] {
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
}

/** Whether no process of that number runs, or one that began at another time. */
async function hasEnded(pid: number, start: string): Promise<boolean> {
  const now = await startOf(pid);
  if (now !== undefined) return now !== start;
  // What other users' processes are may be hidden, but not whether there is one.
  try {
    process.kill(pid, 0);
    return false;
  } catch (error) {
    return hasCode(error, "ESRCH");
  }
}

async function bootHere(): Promise<string | undefined> {
  const boot = await readFile(BOOT_ID, "utf8").catch(() => undefined);
  return boot?.trim();
}

async function systemHere(): Promise<string | undefined> {
  const boot = await bootHere();
  const processes = await readlink("/proc/self/ns/pid").catch(() => undefined);
  return boot === undefined || processes === undefined ? undefined : `${boot} ${processes}`;
}

/**
 * When it began, in ticks after the boot; `ended` if only its parent has to collect what became of it (state
 * `Z` or `X`, field 3).
 * @returns undefined if there is no such process, or it is hidden
 */
async function startOf(pid: number): Promise<string | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  if (stat === undefined) return undefined;
  return ["Z", "X"].includes(fieldsIn(stat)[0] ?? "") ? "ended" : startIn(stat);
}
