/** Contenders that read 64 KiB at random places, one read after the other. */

import { readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { execa } from "execa";
import { PROJECT } from "../paths.js";
import { PROGRAMS } from "../programs.js";
import { servePoint } from "../served.js";
import { BenchStore } from "../store.js";
import { type Command, type Contender, storedIn, type Task } from "../workload.js";

const CEPH = [PROGRAMS.radosgw, PROGRAMS.cephMon, PROGRAMS.cephOsd];
const COUNT = 400;

const program = (name: string): string => join(PROJECT, "dist", "bench", "programs", `${name}.js`);

const addressOf = async (task: Task): Promise<string> =>
  await (await BenchStore.shared()).copyOf(storedIn(task).repository);

const readMs = async ({ stdout = "" }: Command): Promise<number> => Number(await readFile(stdout, "utf8"));

/**
 * From a point that `nbdpull serve` reads in the store.
 * @param options.cache with a cache on a disk, which has all of it
 */
export function randomReads({ cache = false } = {}): Contender {
  const served = async (task: Task): Promise<string[]> => {
    const { domain, disk } = storedIn(task);
    const socket = join(dirname(task.output), "served.sock");
    const more = cache ? ["--cache", join(task.output, "cache")] : [];
    return [await addressOf(task), domain, "--disk", disk, "--socket", socket, ...more];
  };
  return {
    name: cache ? "nbdpull serve, cached" : "nbdpull serve",
    needs: CEPH,
    command: async (task) => ({
      program: process.execPath,
      args: [program("random-reads"), `${COUNT}`, cache ? "2" : "1", ...(await served(task))],
      stdout: join(task.output, "median"),
    }),
    readMs,
    verify: async (task) => {
      await using point = await servePoint(await served(task));
      const { expected } = storedIn(task);
      await execa("qemu-img", ["compare", "-f", "raw", "-F", expected.format, point.uri, expected.path]);
      return "qemu-img compare of the export with the disk at the newest point";
    },
  };
}

/** The least that a read from the store can take. */
export function randomGets(): Contender {
  return {
    name: "SDK requests",
    needs: CEPH,
    command: async (task) => {
      const { images, domain } = storedIn(task);
      const full = images[0]?.path ?? "";
      const key = join(domain, basename(dirname(full)), basename(full));
      return {
        program: process.execPath,
        args: [program("random-gets"), `${COUNT}`, `${await addressOf(task)}/${key}`],
        stdout: join(task.output, "median"),
      };
    },
    readMs,
    verify: async () => "by its exit code only",
  };
}
