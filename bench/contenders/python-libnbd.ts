import { join } from "node:path";
import type { Image } from "../images.js";
import { benchFile } from "../paths.js";
import { PROGRAMS, PYTHON } from "../programs.js";
import { type Contender, onlySource, type Task } from "../workload.js";
import { equalsSource } from "./verify.js";

/** libnbd from Python in the loop of virtnbdbackup: bench/programs/synchronous-libnbd.py. */
export function pythonLibnbd(): Contender {
  const image = (task: Task): Image => ({ path: join(task.output, "disk.raw"), format: "raw" });
  return {
    name: "libnbd from Python",
    needs: [PROGRAMS.libnbdModule],
    command: (task) => {
      const source = onlySource(task);
      const context = source.bitmap === undefined ? "base:allocation" : `qemu:dirty-bitmap:${source.bitmap}`;
      return {
        program: PYTHON,
        args: [benchFile("programs", "synchronous-libnbd.py"), source.uri, context, image(task).path],
      };
    },
    verify: equalsSource(image),
  };
}
