/** Contenders that read a repository in an object store. */

import { basename, dirname, join } from "node:path";
import { execa } from "execa";
import { compareImages, type Image } from "../images.js";
import { NBDPULL, PROJECT } from "../paths.js";
import { PROGRAMS } from "../programs.js";
import { BenchStore } from "../store.js";
import { type Contender, storedIn, type Task } from "../workload.js";

const CEPH = [PROGRAMS.radosgw, PROGRAMS.cephMon, PROGRAMS.cephOsd];

const restored = (task: Task): Image => ({ path: join(task.output, "disk.raw"), format: "raw" });

async function addressOf(task: Task): Promise<string> {
  return await (await BenchStore.shared()).copyOf(storedIn(task).repository);
}

async function equalsDisk(task: Task): Promise<string> {
  await compareImages(restored(task), storedIn(task).expected);
  return "qemu-img compare with the disk at the newest point";
}

/** Restores the newest point from the store, and compares every byte with its digest. */
export function nbdpullRestoreFromStore(): Contender {
  return {
    name: "nbdpull restore",
    needs: CEPH,
    command: async (task) => {
      const { domain, disk } = storedIn(task);
      const to = ["--disk", disk, "--to", restored(task).path, "--format", "raw"];
      const args = [NBDPULL, "restore", await addressOf(task), domain, ...to, "--no-fsync", "--quiet"];
      return { program: process.execPath, args };
    },
    verify: equalsDisk,
  };
}

/** What nbdpull reads and compares of all points, from the store. */
export function nbdpullVerifyInStore(): Contender {
  return {
    name: "nbdpull verify",
    needs: CEPH,
    command: async (task) => {
      return { program: process.execPath, args: [NBDPULL, "verify", await addressOf(task), "--quiet"] };
    },
    verify: async (task) => {
      await execa(process.execPath, [NBDPULL, "verify", await addressOf(task), "--json"]);
      return "its exit code: no damage";
    },
  };
}

/** A download of the same objects, and stock QEMU on the files: it proves nothing on the way. */
export function downloadAndConvert(): Contender {
  return {
    name: "SDK download, qemu-img convert",
    needs: [...CEPH, PROGRAMS.qemuImg],
    command: async (task) => {
      const { images, domain } = storedIn(task);
      const newest = images.at(-1)?.path ?? "";
      const image = join(domain, basename(dirname(newest)), basename(newest));
      const program = join(PROJECT, "dist", "bench", "programs", "download-and-convert.js");
      const folder = join(task.output, "downloaded");
      const args = [program, await addressOf(task), folder, image, restored(task).path];
      return { program: process.execPath, args };
    },
    verify: equalsDisk,
  };
}
