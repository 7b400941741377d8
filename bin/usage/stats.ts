import type { Command } from "commander";
import { examples, REPO } from "../options.js";
import type { Run } from "../run.js";

export function addStats(program: Command, run: Run): void {
  program
    .command("stats")
    .addHelpText("after", examples("nbdpull stats /srv/backups"))
    .description("what is stored of each domain, what it stands for, and what changes a day")
    .argument("[repo]", REPO)
    .argument("[domain...]", "left out: all domains")
    .action(run(async () => (await import("../commands/stats.js")).runStats));
}
