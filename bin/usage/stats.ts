import type { Command } from "commander";
import { examples, REPO } from "../options.js";
import type { Run } from "../run.js";

export function addStats(program: Command, run: Run): void {
  program
    .command("stats")
    .addHelpText("after", examples("nbdpull stats /srv/backups"))
    .description(
      "print what each domain stores, how much that would be as full copies, and what changes a day",
    )
    .argument("[repo]", REPO)
    .argument("[domain...]", "left out: all domains")
    .action(run(async () => (await import("../commands/stats.js")).runStats));
}
