import { type Command, Option } from "commander";
import { examples, withNetwork } from "../options.js";
import type { Run } from "../run.js";

export function addMap(program: Command, run: Run): void {
  const command = program
    .command("map")
    .addHelpText(
      "after",
      examples("nbdpull map nbd://host/vda --totals", "nbdpull map nbd://host/vda --bitmap monday --json"),
    )
    .description(
      "print the extents of a meta context (base:allocation by default), totals, and where on the disk they are",
    )
    .argument("<uri>", "nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")
    .addOption(new Option("--bitmap <name>", "the dirty bitmap of this name").conflicts("context"))
    .option("--context <name>", "any meta context, by its full name")
    .option("--totals", "only the totals, no line for each extent");
  withNetwork(command).action(run(async () => (await import("../commands/map.js")).runMap));
}
