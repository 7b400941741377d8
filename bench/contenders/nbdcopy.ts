import { join } from "node:path";
import { compareImages, type Image } from "../images.js";
import { PROGRAMS } from "../programs.js";
import { type Contender, onlySource, type Source, type Task } from "../workload.js";
import { equalsSource, nothingToCompare } from "./verify.js";

/** What was fastest of all that was tried, on a unix socket. */
const TUNED = ["--connections=4", "--requests=8", "--request-size=1048576"] as const;

/** `nbdcopy`, with its defaults where nothing else is asked for. */
export function nbdcopy(...more: readonly string[]): Contender {
  const image = (task: Task): Image => ({ path: join(task.output, "disk.raw"), format: "raw" });
  return {
    name: ["nbdcopy", ...more].join(" "),
    needs: [PROGRAMS.nbdcopy],
    command: (task) => ({ program: "nbdcopy", args: [...more, onlySource(task).uri, image(task).path] }),
    verify: equalsSource(image),
  };
}

export function nbdcopyTuned(): Contender {
  return { ...nbdcopy(...TUNED), name: "nbdcopy tuned" };
}

/** Reads all, keeps nothing. */
export function nbdcopyToNull(...more: readonly string[]): Contender {
  return {
    ...nbdcopy(...more),
    name: ["nbdcopy null:", ...more].join(" "),
    command: (task) => ({ program: "nbdcopy", args: [...more, onlySource(task).uri, "null:"] }),
    verify: nothingToCompare,
  };
}

/** One process a disk, all at once. The CPU time is that of all; the peak RSS that of one. */
export function nbdcopyEachDisk(): Contender {
  const image = (task: Task, { exportName }: Source): Image => ({
    path: join(task.output, `${exportName}.raw`),
    format: "raw",
  });
  return {
    name: "nbdcopy for each disk",
    needs: [PROGRAMS.nbdcopy],
    command: (task) => ({
      program: "sh",
      args: [
        "-ec",
        // `wait` alone would forget the exit codes.
        'pids=; while [ $# -gt 0 ]; do nbdcopy "$1" "$2" & pids="$pids $!"; shift 2; done; for pid in $pids; do wait "$pid"; done',
        "sh",
        ...task.sources.flatMap((source) => [source.uri, image(task, source).path]),
      ],
    }),
    verify: async (task) => {
      for (const source of task.sources) await compareImages(image(task, source), source.expected);
      return "qemu-img compare with each disk";
    },
  };
}
