import type { Command } from "commander";
import { withWhose } from "../domain-options.js";
import { examples, REPO, withTrust } from "../options.js";
import { withRetention } from "../retention-options.js";
import type { Run } from "../run.js";

export function addPrune(program: Command, run: Run): void {
  const command = program
    .command("prune")
    .addHelpText(
      "after",
      examples(
        "nbdpull prune /srv/backups --keep-daily 14 --keep-weekly 8 --dry-run",
        "nbdpull prune /srv/backups web --keep-last 3",
      ),
    )
    .description(
      "remove old points, and merge what later points need of them; each kept point stays restorable",
    )
    .argument("[repo]", REPO)
    .argument("[domain]", "left out: every domain, each by itself")
    .option("--metrics <file>", "keep a metrics file for the node exporter's textfile collector (*.prom)")
    .option("--dry-run", "only tell what would be done")
    .option("--no-fsync", "do not flush to stable storage: faster, and not safe against a power cut");
  withTrust(withWhose(withRetention(command))).action(
    run(async () => (await import("../commands/prune.js")).runPrune),
  );
}
