import type { Command } from "commander";
import { withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addInit(program: Command, run: Run): void {
  const command = program
    .command("init")
    .description("make a repository, in a new folder or an empty one")
    .argument("<repo>");
  withTrust(command).action(run(async () => (await import("../commands/init.js")).runInit));
}
