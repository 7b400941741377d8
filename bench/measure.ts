import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";

/** One run of a whole process. */
export interface Measured {
  readonly wallSeconds: number;
  /** User and system time, to the last sample before the end. */
  readonly cpuSeconds: number;
  readonly peakRssMiB: number;
}

const SAMPLE_EVERY_MS = 10;
/** What /proc counts CPU time in (USER_HZ, 100 on every Linux architecture that Node runs on). */
const TICKS_PER_SECOND = 100;

/** Runs a command to its end and measures it from outside, through /proc. A failure rejects. */
export async function measure(command: string, args: readonly string[]): Promise<Measured> {
  const started = performance.now();
  const child = execa(command, args, { stdout: "ignore" });
  let running = true;
  const ended = child.finally(() => {
    running = false;
  });
  ended.catch(() => undefined);
  let peakKiB = 0;
  let ticks = 0;
  while (running && child.pid !== undefined) {
    const status = await readFile(`/proc/${child.pid}/status`, "utf8").catch(() => "");
    peakKiB = Math.max(peakKiB, Number(/^VmHWM:\s+(\d+)/m.exec(status)?.[1] ?? 0));
    ticks = Math.max(ticks, cpuTicks(await readFile(`/proc/${child.pid}/stat`, "utf8").catch(() => "")));
    await Promise.race([sleep(SAMPLE_EVERY_MS), ended.catch(() => undefined)]);
  }
  await ended;
  return {
    wallSeconds: (performance.now() - started) / 1000,
    cpuSeconds: ticks / TICKS_PER_SECOND,
    peakRssMiB: peakKiB / 1024,
  };
}

/** Fields 14 and 15 of /proc/PID/stat; the name in field 2 may hold blanks. */
function cpuTicks(stat: string): number {
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return Number(fields[11] ?? 0) + Number(fields[12] ?? 0);
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}
