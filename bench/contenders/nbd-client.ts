import { join } from "node:path";
import { PROJECT } from "../paths.js";
import { type Contender, onlySource } from "../workload.js";
import { nothingToCompare } from "./verify.js";

/** Our library alone, without the backup engine: bench/programs/read-all.ts. */
export function nbdClientToNull(): Contender {
  return {
    name: "nbd-client-ts",
    needs: [],
    command: (task) => ({
      program: process.execPath,
      args: [join(PROJECT, "dist", "bench", "programs", "read-all.js"), onlySource(task).uri],
    }),
    verify: nothingToCompare,
  };
}
