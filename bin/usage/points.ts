import type { Command } from "commander";
import { withWhose } from "../domain-options.js";
import { collect, examples, REPO, withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addPoints(program: Command, run: Run): void {
  const command = program
    .command("points")
    .addHelpText("after", examples("nbdpull points /srv/backups", "nbdpull points /srv/backups web --json"))
    .description("list the restore points of a repository, oldest first, and whether they can be restored")
    .argument("[repo]", REPO)
    .argument("[domain]", "left out: every domain")
    .option(
      "--long",
      "all of each point: its checkpoint, its disks, what they are based on, and what was kept",
    )
    .option("--fix-clock", "date points anew that were made while a clock was wrong; their ids stay")
    .option(
      "--wrong <id>",
      "with --fix-clock: the time of this point is wrong; may be given several times",
      collect,
    )
    .option("--dry-run", "with --fix-clock: only tell what would be done");
  withTrust(withWhose(command)).action(run(async () => (await import("../commands/points.js")).runPoints));
}
