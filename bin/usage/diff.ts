import type { Command } from "commander";
import { withWhose } from "../domain-options.js";
import { collect, examples, REPO } from "../options.js";
import type { Run } from "../run.js";

export function addDiff(program: Command, run: Run): void {
  const command = program
    .command("diff")
    .addHelpText("after", examples("nbdpull diff /srv/backups web 20261127 latest"))
    .description("print where the disks of two points of a domain differ, and how much")
    .argument("[repo]", REPO)
    .argument("[domain]", "whose points they are")
    .argument("[from]", "a point: its id or the beginning of it, a time, or latest")
    .argument("[to]", "another one")
    .option("--disk <name>", "only this disk; may be given several times", collect);
  withWhose(command).action(run(async () => (await import("../commands/diff.js")).runDiff));
}
