/** Contenders that write to an object store. */

import { writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { execa } from "execa";
import { compareImages } from "../images.js";
import { NBDPULL, PROJECT } from "../paths.js";
import { PROGRAMS } from "../programs.js";
import { BenchStore } from "../store.js";
import { type Command, type Contender, onlySource } from "../workload.js";
import { jobXml } from "./nbdpull.js";

const CEPH = [PROGRAMS.radosgw, PROGRAMS.cephMon, PROGRAMS.cephOsd];
const DOMAIN = "bench";

async function newPlace(): Promise<string> {
  return (await BenchStore.another()).emptyPlace();
}

/** The disk of a running job as a restore point in a new repository in the store. */
export function nbdpullAttachToStore(): Contender {
  return {
    name: "nbdpull attach",
    needs: CEPH,
    command: async (task) => {
      const xml = join(dirname(task.output), "job.xml");
      await writeFile(xml, jobXml(task.sources));
      const place = await newPlace();
      // A repository is made once: what the store can do is found out then.
      await execa(process.execPath, [NBDPULL, "init", place]);
      const args = ["attach", "--xml", xml, "--domain", DOMAIN, "--to", place, "--quiet"];
      return { program: process.execPath, args: [NBDPULL, ...args] };
    },
    verify: async (task, { args }) => {
      const { exportName, expected } = onlySource(task);
      const address = args[args.indexOf("--to") + 1] ?? "";
      const to = join(task.output, "restored.raw");
      const disk = ["--disk", exportName, "--to", to, "--format", "raw", "--no-fsync", "--quiet"];
      await execa(process.execPath, [NBDPULL, "restore", address, DOMAIN, ...disk]);
      await compareImages({ path: to, format: "raw" }, expected);
      return "nbdpull restore, then qemu-img compare with the disk";
    },
  };
}

/** The same bytes from a file, which nobody has to read from an export, look at or digest. */
export function uploadFile(): Contender {
  return {
    name: "SDK upload of a file",
    needs: CEPH,
    command: async (task): Promise<Command> => {
      const { path } = onlySource(task).expected;
      const program = join(PROJECT, "dist", "bench", "programs", "upload-file.js");
      return { program: process.execPath, args: [program, path, `${await newPlace()}/disk`] };
    },
    verify: async () => "by its exit code only",
  };
}
