import { writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { execa } from "execa";
import { compareImages } from "../images.js";
import { NBDPULL } from "../paths.js";
import { type Contender, onlySource, type Source, type Task } from "../workload.js";
import { equalsSource, isWholeMap } from "./verify.js";

/**
 * `nbdpull pull` as users run it, but without the flush at the end, since none of the others flushes either.
 */
export function nbdpull(format: "raw" | "qcow2", ...more: readonly string[]): Contender {
  const image = (task: Task) => ({ path: join(task.output, `disk.${format}`), format });
  return {
    name: ["nbdpull", format, ...more].join(" "),
    needs: [],
    command: (task) => ({
      program: process.execPath,
      args: [
        NBDPULL,
        "pull",
        ...addressOf(onlySource(task)),
        image(task).path,
        "--no-fsync",
        "--quiet",
        ...more,
      ],
    }),
    verify: equalsSource(image),
  };
}

export function nbdpullMap(): Contender {
  return {
    name: "nbdpull map",
    needs: [],
    command: (task) => ({
      program: process.execPath,
      args: [NBDPULL, "map", ...addressOf(onlySource(task)), "--json"],
      stdout: join(task.output, "map.json"),
    }),
    verify: isWholeMap,
  };
}

const DOMAIN = "bench";

/** All disks of a running job as one restore point in a new repository, each with its digests. */
export function nbdpullAttach(...more: readonly string[]): Contender {
  return {
    name: ["nbdpull attach", ...more].join(" "),
    needs: [],
    command: async (task) => {
      const xml = join(dirname(task.output), "job.xml");
      await writeFile(xml, jobXml(task.sources));
      const to = ["--to", join(task.output, "repository"), "--create"];
      return {
        program: process.execPath,
        args: [NBDPULL, "attach", "--xml", xml, "--domain", DOMAIN, ...to, "--no-fsync", "--quiet", ...more],
      };
    },
    verify: async (task) => {
      const to = join(task.output, "restored");
      await execa(process.execPath, [
        ...[NBDPULL, "restore", join(task.output, "repository"), DOMAIN],
        ...["--to", to, "--no-fsync", "--quiet"],
      ]);
      for (const { exportName, expected } of task.sources) {
        await compareImages({ path: join(to, `${exportName}.raw`), format: "raw" }, expected);
      }
      return "nbdpull restore, then qemu-img compare with each disk";
    },
  };
}

function addressOf(source: Source): string[] {
  return [source.uri, ...(source.bitmap === undefined ? [] : ["--bitmap", source.bitmap])];
}

/** What libvirt would say of the job. */
export function jobXml(sources: readonly Source[]): string {
  const [first] = sources;
  if (first?.at.kind !== "unix") throw new Error("jobs are read over a unix socket here");
  const disks = sources.map(
    ({ exportName }) =>
      `<disk name='${exportName}' backup='yes' type='file' backupmode='full' exportname='${exportName}'/>`,
  );
  return [
    "<domainbackup mode='pull'>",
    `<server transport='unix' socket='${first.at.socket}'/>`,
    `<disks>${disks.join("")}</disks>`,
    "</domainbackup>",
  ].join("");
}
