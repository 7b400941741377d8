import { join } from "node:path";
import { PROGRAMS } from "../programs.js";
import { type Contender, onlySource } from "../workload.js";
import { isWholeMap } from "./verify.js";

export function nbdinfoMap(): Contender {
  return {
    name: "nbdinfo --map",
    needs: [PROGRAMS.nbdinfo],
    command: (task) => {
      const source = onlySource(task);
      const map = source.bitmap === undefined ? "--map" : `--map=qemu:dirty-bitmap:${source.bitmap}`;
      return {
        program: "nbdinfo",
        args: [map, "--json", source.uri],
        stdout: join(task.output, "map.json"),
      };
    },
    verify: isWholeMap,
  };
}
