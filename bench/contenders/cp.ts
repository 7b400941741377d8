import { extname, join } from "node:path";
import type { Image } from "../images.js";
import { PROGRAMS } from "../programs.js";
import { type Contender, onlySource, type Task } from "../workload.js";
import { equalsSource } from "./verify.js";

/** Copies the file that holds the disk, from page cache to page cache: the same bytes, and no server. */
export function cp(): Contender {
  const image = (task: Task): Image => {
    const { path, format } = onlySource(task).expected;
    return { path: join(task.output, `disk${extname(path)}`), format };
  };
  return {
    name: "cp --sparse=always",
    needs: [PROGRAMS.cp],
    command: (task) => ({
      program: "cp",
      args: ["--sparse=always", onlySource(task).expected.path, image(task).path],
    }),
    verify: equalsSource(image),
  };
}
