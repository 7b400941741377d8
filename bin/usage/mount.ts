import type { Command } from "commander";
import { withCache } from "../cache-options.js";
import { atPoint, onlyDisks, withWhose } from "../domain-options.js";
import { examples, REPO } from "../options.js";
import type { Run } from "../run.js";

export function addMount(program: Command, run: Run): void {
  const command = program
    .command("mount")
    .addHelpText(
      "after",
      examples(
        "nbdpull mount /srv/backups web /mnt/web",
        "nbdpull mount /srv/backups web /mnt/web --at 2026-11-28 --disk vda",
        "nbdpull mount /srv/backups web /mnt/web --files",
      ),
    )
    .description(
      "show the disks of a point as files, read-only, until they are unmounted or Ctrl-C is pressed",
    )
    .argument("[repo]", REPO)
    .argument("[domain]", "whose point it is")
    .argument("[dir]", "an empty folder, or one to make")
    .option("--files", "show the files in its file systems, by libguestfs, instead of whole disks")
    .addOption(atPoint())
    .addOption(onlyDisks());
  withCache(withWhose(command)).action(run(async () => (await import("../commands/mount.js")).runMount));
}
