import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { finished, type Ran, startNbdpull } from "./nbdpull.js";

/**
 * Preloaded into the command; on exit it records the peak resident size in KiB. Linux counts it for each
 * address space: getrusage's `ru_maxrss` survives exec, so a small child would report its large parent's.
 */
const RECORDER = `
import { readFileSync, writeFileSync } from "node:fs";
import { isMainThread } from "node:worker_threads";
const file = process.env.PEAK_MEMORY_FILE;
const peak = () => /^VmHWM:\\s+(\\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))[1];
if (isMainThread) process.on("exit", () => writeFileSync(file, peak()));
`;

type Measured = Ran & { readonly peakBytes: number };

/** Runs `nbdpull`, which must succeed; `peakBytes` is the peak resident size of all threads together. */
export function nbdpullMeasured(...args: readonly string[]): Promise<Measured> {
  return nbdpullMeasuredBy(process.execPath, ...args);
}

/** Likewise, with this Node. */
export async function nbdpullMeasuredBy(node: string, ...args: readonly string[]): Promise<Measured> {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-peak-"));
  try {
    const file = join(folder, "peak");
    const recorder = `--import=data:text/javascript,${encodeURIComponent(RECORDER)}`;
    const ran = await finished(
      startNbdpull(args, { node, env: { NODE_OPTIONS: recorder, PEAK_MEMORY_FILE: file } }),
    );
    if (ran.code !== 0) throw new Error(`nbdpull ${args.join(" ")} ended with ${ran.code}: ${ran.stderr}`);
    return { ...ran, peakBytes: Number(await readFile(file, "utf8")) * 1024 };
  } finally {
    await rm(folder, { recursive: true });
  }
}
