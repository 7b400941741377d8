import type { Command } from "commander";
import { examples } from "../options.js";
import type { Run } from "../run.js";

export function addDemo(program: Command, run: Run): void {
  program
    .command("demo")
    .addHelpText("after", examples("nbdpull demo"))
    .description("back up, restore and verify a disk of the built-in server, and print what was proved")
    .action(run(async () => (await import("../commands/demo.js")).runDemo));
}
