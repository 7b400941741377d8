/** Contenders that work on a repository, and their yardsticks among stock tools. */

import { dirname, join } from "node:path";
import { execa } from "execa";
import { compareImages, type Image } from "../images.js";
import { benchFile, NBDPULL } from "../paths.js";
import { PROGRAMS, PYTHON } from "../programs.js";
import { type Contender, storedIn, type Task } from "../workload.js";

type Format = "raw" | "qcow2";

const restoredImage = (task: Task, format: Format): Image => ({
  path: join(task.output, `disk.${format}`),
  format,
});

async function equalsDisk(task: Task, format: Format): Promise<string> {
  await compareImages(restoredImage(task, format), storedIn(task).expected);
  return "qemu-img compare with the disk at the newest point";
}

/**
 * Restores the newest point and compares every byte with its digest. No flush at the end, since the others
 * don't flush either.
 */
export function nbdpullRestore(format: Format): Contender {
  return {
    name: `nbdpull restore ${format}`,
    needs: [],
    command: (task) => {
      const { repository, domain, disk } = storedIn(task);
      const to = ["--disk", disk, "--to", restoredImage(task, format).path, "--format", format];
      const args = [NBDPULL, "restore", repository, domain, ...to, "--no-fsync", "--quiet"];
      return { program: process.execPath, args };
    },
    verify: (task) => equalsDisk(task, format),
  };
}

/** What stock QEMU makes of the same chain: it proves nothing on the way. */
export function qemuImgConvertChain(format: Format, ...more: readonly string[]): Contender {
  return {
    name: ["qemu-img convert", format, ...more].join(" "),
    needs: [PROGRAMS.qemuImg],
    command: (task) => {
      const newest = storedIn(task).images.at(-1)?.path ?? "";
      const to = restoredImage(task, format).path;
      return { program: "qemu-img", args: ["convert", ...more, "-f", "qcow2", "-O", format, newest, to] };
    },
    verify: (task) => equalsDisk(task, format),
  };
}

interface VerifyReport {
  readonly damaged: boolean;
  readonly points: readonly { readonly disks: readonly { readonly verifiedBytes: number }[] }[];
}

export function nbdpullVerify(): Contender {
  const args = (task: Task): string[] => [NBDPULL, "verify", storedIn(task).repository];
  return {
    name: "nbdpull verify",
    needs: [],
    command: (task) => ({ program: process.execPath, args: [...args(task), "--quiet"] }),
    verify: async (task) => {
      const { stdout } = await execa(process.execPath, [...args(task), "--json"]);
      const { damaged, points } = JSON.parse(stdout) as VerifyReport;
      const looked = points.filter(({ disks }) => disks.every(({ verifiedBytes }) => verifiedBytes > 0));
      if (damaged || looked.length !== storedIn(task).images.length)
        throw new Error(`not verified: ${stdout}`);
      return "its report: bytes of every point, and no damage";
    },
  };
}

/** All the files that `verify` reads. */
function storedFiles(task: Task): string[] {
  const { images, disk } = storedIn(task);
  return images.flatMap(({ path }) => [path, join(dirname(path), `${disk}.digests`)]);
}

/** Reads them on one processor. */
export function sha256sum(): Contender {
  return {
    name: "sha256sum",
    needs: [PROGRAMS.sha256sum],
    command: (task) => ({ program: "sha256sum", args: storedFiles(task) }),
    verify: async () => "by its exit code only",
  };
}

/** Reads them on all processors: bench/programs/read-by-all-cores.py. */
export function readByAllCores(...digests: readonly "--sha256"[]): Contender {
  return {
    name: ["read by all cores", ...digests].join(" "),
    needs: [PROGRAMS.python],
    command: (task) => ({
      program: PYTHON,
      args: [benchFile("programs", "read-by-all-cores.py"), ...digests, ...storedFiles(task)],
    }),
    verify: async () => "by its exit code only",
  };
}
