import { readFile, readlink } from "node:fs/promises";
import { hostname } from "node:os";
import { hasCode } from "../base/errors.js";

/** A process, so that others on its host can tell whether it has ended. */
export interface Process {
  readonly host: string;
  /**
   * The boot of its system, and the processes that it sees: numbers mean the same only where this is the
   * same.
   */
  readonly boot: string;
  readonly pid: number;
  /** When it began, in ticks since the boot: numbers are given again. */
  readonly start: string;
}

/** This process; without what can't be told here. */
export async function thisProcess(): Promise<Partial<Process>> {
  const [boot, start] = await Promise.all([bootHere(), startOf(process.pid)]);
  const known = boot === undefined || start === undefined ? {} : { boot, start };
  return { host: hostname(), pid: process.pid, ...known };
}

/** Whether it was a process of this system, and has ended. False if that can't be told. */
export async function isDead({ boot, pid, start }: Partial<Process>): Promise<boolean> {
  if (boot === undefined || pid === undefined || start === undefined) return false;
  // Where nothing of this process can be read, nothing of another one can.
  const [here, ours] = await Promise.all([bootHere(), startOf(process.pid)]);
  if (here === undefined || here !== boot || ours === undefined) return false;
  const now = await startOf(pid);
  return now === undefined ? hasEnded(pid) : now !== start;
}

/** What other users' processes are may be hidden, but not whether there is one. */
function hasEnded(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return false;
  } catch (error) {
    return hasCode(error, "ESRCH");
  }
}

async function bootHere(): Promise<string | undefined> {
  try {
    const boot = await readFile("/proc/sys/kernel/random/boot_id", "utf8");
    return `${boot.trim()} ${await readlink("/proc/self/ns/pid")}`;
  } catch {
    return undefined;
  }
}

/** @returns undefined if there is no such process, or it is hidden */
async function startOf(pid: number): Promise<string | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  // The name, in brackets, may have any characters; the start is the 22nd field, and the third comes behind
  // it.
  const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
  // A zombie has ended.
  return fields?.[0] === "Z" ? "ended" : fields?.[19];
}
