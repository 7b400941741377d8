/** What tells a process from all others, also from later ones with its number, on this host and others. */
import { readFile } from "node:fs/promises";
import { hostname } from "node:os";
import { z } from "zod";
import { isMissing } from "./durable-files.js";

export const BOOT_ID = "/proc/sys/kernel/random/boot_id";

export const processIdentity = z.object({
  host: z.string(),
  pid: z.number().int().positive(),
  /** Boot ID of the host, and start of the process. */
  startedAt: z.string(),
});
export type ProcessIdentity = z.infer<typeof processIdentity>;

export async function thisProcess(): Promise<ProcessIdentity> {
  return { host: hostname(), pid: process.pid, startedAt: (await startOf(process.pid)) ?? "" };
}

/** Whether it lives. A process of another host always counts as alive. */
export async function isAlive({ host, pid, startedAt }: ProcessIdentity): Promise<boolean> {
  return host !== hostname() || (await startOf(pid)) === startedAt;
}

/**
 * When a process started, in ticks after the boot of the host: field 22 of its `/proc/PID/stat`. The name in
 * parentheses may contain spaces, so fields are counted after it.
 */
export function startIn(stat: string): string {
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
}

/** Whether it has ended and nobody has collected its exit code: state `Z`, field 3. */
function hasEnded(stat: string): boolean {
  return ["Z", "X"].includes(stat.slice(stat.lastIndexOf(")") + 2, stat.lastIndexOf(")") + 3));
}

/**
 * Boot ID and start time of a process. Undefined if there is no such process, or only what its parent has to
 * collect.
 */
async function startOf(pid: number): Promise<string | undefined> {
  try {
    const boot = (await readFile(BOOT_ID, "utf8")).trim();
    const stat = await readFile(`/proc/${pid}/stat`, "utf8");
    return hasEnded(stat) ? undefined : `${boot} ${startIn(stat)}`;
  } catch (error) {
    if (isMissing(error) || (error as NodeJS.ErrnoException).code === "ESRCH") return undefined;
    throw error;
  }
}
