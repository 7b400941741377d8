import { type Command, Option } from "commander";
import { examples, REPO, span } from "../options.js";
import type { Run } from "../run.js";

/** Seconds: a day, and two hours for a backup that takes longer than the one before. */
const DAILY_AND_SOME = 26 * 3600;

export function addReport(program: Command, run: Run): void {
  program
    .command("report")
    .addHelpText("after", examples("nbdpull report /srv/backups --html /var/www/backups.html"))
    .description(
      "show what is protected and what isn't: each domain's last good point, age, sizes and damage",
    )
    .argument("[repo...]", REPO)
    .option("--html <file>", "write it as one page for a browser, with charts; replaces an older report")
    .option("--prometheus <file>", "write it as metrics for the textfile collector, beside those of others")
    .addOption(
      new Option("--max-age <span>", "how old a domain's last good point may be, such as 90m, 26h or 8d")
        .argParser(span)
        .default(DAILY_AND_SOME, "26h"),
    )
    .action(run(async () => (await import("../commands/report.js")).runReport));
}
