import { join } from "node:path";
import type { Image } from "../images.js";
import { PROGRAMS } from "../programs.js";
import { type Contender, onlySource, type Source, type Task } from "../workload.js";
import { equalsSource, nothingToCompare } from "./verify.js";

/** bench/c/minimal-client.c: the minimum cost of the work. */
export function minimalClient(...more: readonly string[]): Contender {
  const image = (task: Task): Image => ({ path: join(task.output, "disk.raw"), format: "raw" });
  return {
    name: ["minimal C client", ...more].join(" "),
    needs: [PROGRAMS.cc],
    command: (task) => {
      const source = onlySource(task);
      return {
        program: task.built.minimalClient,
        args: [...more, ...contextOf(source), ...addressOf(source), source.exportName, image(task).path],
      };
    },
    verify: equalsSource(image),
  };
}

/** Reads all, keeps nothing. */
export function minimalClientToNull(): Contender {
  return { ...minimalClient("-n"), verify: nothingToCompare };
}

function contextOf({ bitmap }: Source): string[] {
  return bitmap === undefined ? [] : ["-c", `qemu:dirty-bitmap:${bitmap}`];
}

function addressOf({ at, tls }: Source): string[] {
  if (tls !== undefined) throw new Error("the minimal client has no TLS");
  return at.kind === "unix" ? ["-u", at.socket] : ["-t", `${at.host}:${at.port}`];
}
