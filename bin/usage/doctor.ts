import type { Command } from "commander";
import { withGuest } from "../guest-options.js";
import { examples } from "../options.js";
import type { Run } from "../run.js";

export function addDoctor(program: Command, run: Run): void {
  const command = program
    .command("doctor")
    .addHelpText("after", examples("nbdpull doctor", "nbdpull doctor web --to /srv/backups"))
    .description(
      "check what a backup needs, and print the command that mends what is wrong; changes nothing without --retire",
    )
    .argument("[domain]", "what a backup of it would rest on; left out: only the host and the repository")
    .option("--to <repo>", "the repository that it would go to")
    .option(
      "--retire <id>",
      "delete the checkpoints of a repository that is no more, by its id, from the domain or all that run",
    )
    .option("--dry-run", "with --retire: only tell what would be deleted");
  withGuest(command).action(run(async () => (await import("../commands/doctor.js")).runDoctor));
}
