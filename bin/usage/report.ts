import type { Command } from "commander";
import { withMaxAge } from "../max-age.js";
import { examples, REPO } from "../options.js";
import type { Run } from "../run.js";

export function addReport(program: Command, run: Run): void {
  const command = program
    .command("report")
    .addHelpText("after", examples("nbdpull report /srv/backups --html /var/www/html/backups.html"))
    .description(
      "show what is protected and what isn't: each domain's last good point, age, sizes and damage",
    )
    .argument("[repo...]", REPO)
    .option("--html <file>", "write it as one page for a browser, with charts; replaces an older report")
    .option("--prometheus <file>", "write it as metrics for the textfile collector, beside those of others");
  withMaxAge(command).action(run(async () => (await import("../commands/report.js")).runReport));
}
