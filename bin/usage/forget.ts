import type { Command } from "commander";
import { withWhose } from "../domain-options.js";
import { examples, REPO, withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addForget(program: Command, run: Run): void {
  const command = program
    .command("forget")
    .addHelpText(
      "after",
      examples(
        "nbdpull forget /srv/backups web --dry-run",
        "nbdpull forget /srv/backups web --force",
        "nbdpull forget /srv/backups web --checkpoints --force",
      ),
    )
    .description("remove a domain from the repository, with all its points and its checkpoints in libvirt")
    .argument("[repo]", REPO)
    .argument("[domain]", "whose points go; or --all")
    .option("--all", "every domain of the repository")
    .option("--dry-run", "only tell what would be removed")
    .option("--force", "remove it: without this or --dry-run nothing is done")
    .option(
      "--checkpoints",
      "only the checkpoints that this host has made: the points stay, or are gone already",
    )
    .option("--connect <uri>", "libvirt connection, as virsh -c");
  withTrust(withWhose(command)).action(run(async () => (await import("../commands/forget.js")).runForget));
}
