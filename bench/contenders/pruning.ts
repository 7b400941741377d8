/** Contenders that drop all but the last two points of a chain, each on a copy of the repository. */

import { cp, readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { execa } from "execa";
import { compareImages } from "../images.js";
import { NBDPULL } from "../paths.js";
import { PROGRAMS } from "../programs.js";
import { type Contender, storedIn, type Task } from "../workload.js";

const KEPT = 2;

/** The image of a point in this run's copy. */
function imageOf(task: Task, place: number): string {
  const path = storedIn(task).images.at(place)?.path ?? "";
  const { domain } = storedIn(task);
  return join(task.output, "repository", domain, basename(dirname(path)), basename(path));
}

async function copy(task: Task): Promise<void> {
  await cp(storedIn(task).repository, join(task.output, "repository"), { recursive: true });
}

async function newestIsRight(task: Task): Promise<void> {
  await compareImages({ path: imageOf(task, -1), format: "qcow2" }, storedIn(task).expected);
}

export function nbdpullPrune(): Contender {
  return {
    name: "nbdpull prune",
    needs: [],
    command: async (task) => {
      await copy(task);
      const args = [
        "prune",
        join(task.output, "repository"),
        "--keep-last",
        String(KEPT),
        "--no-fsync",
        "--json",
      ];
      return {
        program: process.execPath,
        args: [NBDPULL, ...args],
        stdout: join(task.output, "result.json"),
      };
    },
    verify: async (task, { stdout }) => {
      await newestIsRight(task);
      const text = await readFile(stdout ?? "", "utf8");
      const { domains } = JSON.parse(text) as { domains: { writtenBytes: number }[] };
      const written = domains[0]?.writtenBytes ?? 0;
      const least = await leastToWrite(task);
      return `qemu-img compare of the newest point; ${written} bytes of data written, ${(written / least).toFixed(2)} × the least possible`;
    },
  };
}

/** Merges the oldest kept point and all below it into the full image, and rebases the newest onto that. */
export function qemuImgCommit(): Contender {
  return {
    name: "qemu-img commit",
    needs: [PROGRAMS.qemuImg],
    command: async (task) => {
      await copy(task);
      return { program: "qemu-img", args: ["commit", "-d", "-b", imageOf(task, 0), imageOf(task, -KEPT)] };
    },
    verify: async (task) => {
      const base = ["-u", "-b", imageOf(task, 0), "-F", "qcow2"];
      await execa("qemu-img", ["rebase", "-f", "qcow2", ...base, imageOf(task, -1)]);
      await newestIsRight(task);
      return "qemu-img compare of the newest point, based on the merged image";
    },
  };
}

/**
 * The least data that a merge can write, in bytes. The image that takes the others' data must end up with all
 * data visible at the oldest kept point. It holds its own part already, so the least is all of that data
 * without the part that is in the image which contributes most.
 */
async function leastToWrite(task: Task): Promise<number> {
  const oldestKept = storedIn(task).images.at(-KEPT)?.path ?? "";
  const { stdout } = await execa("qemu-img", ["map", "--output=json", "-f", "qcow2", oldestKept]);
  const extents = JSON.parse(stdout) as { length: number; depth: number; data: boolean }[];
  const byDepth = new Map<number, number>();
  for (const { length, depth, data } of extents) {
    if (data) byDepth.set(depth, (byDepth.get(depth) ?? 0) + length);
  }
  const all = [...byDepth.values()];
  return all.reduce((sum, bytes) => sum + bytes, 0) - Math.max(...all);
}
