import type { Command } from "commander";
import { examples } from "../options.js";
import type { Run } from "../run.js";

export function addDemo(program: Command, run: Run): void {
  program
    .command("demo")
    .addHelpText("after", examples("nbdpull demo"))
    .description("the main job against the built-in server, end to end, and what it proved")
    .action(run(async () => (await import("../commands/demo.js")).runDemo));
}
