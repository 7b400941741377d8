import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Image } from "../images.js";
import { benchFile } from "../paths.js";
import { PROGRAMS, type Program } from "../programs.js";
import { type Contender, onlySource, type Task } from "../workload.js";
import { equalsSource } from "./verify.js";

const PACKAGE: Program = {
  name: "@vates/nbd-client",
  install: "npm run bench:peers",
  isThere: () => existsSync(benchFile("peers", "node_modules", "@vates", "nbd-client")),
};

/** `@vates/nbd-client`: whole disks over TCP only, bench/peers/vates-pull.js. */
export function vatesNbdClient(): Contender {
  const image = (task: Task): Image => ({ path: join(task.output, "disk.raw"), format: "raw" });
  return {
    name: "@vates/nbd-client",
    needs: [PACKAGE, PROGRAMS.nbdinfo],
    command: (task) => {
      const { at } = onlySource(task);
      if (at.kind !== "tcp") throw new Error("it reads over TCP only");
      return {
        program: process.execPath,
        args: [benchFile("peers", "vates-pull.js"), at.host, String(at.port), image(task).path],
      };
    },
    verify: equalsSource(image),
  };
}
