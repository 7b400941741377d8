import type { Command } from "commander";
import { withCache } from "../cache-options.js";
import { atPoint, onlyDisks, withWhose } from "../domain-options.js";
import { grouped } from "../option-groups.js";
import { examples, REPO, withCopy, withNetwork, withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addRestore(program: Command, run: Run): void {
  const command = program
    .command("restore")
    .addHelpText(
      "after",
      examples(
        "nbdpull restore /srv/backups web --to /var/lib/libvirt/images/web",
        "nbdpull restore /srv/backups web --at 2026-11-28 --disk vda --to vda.qcow2",
        "nbdpull restore /srv/backups web --to /var/lib/libvirt/images/web2 --define=web2",
      ),
    )
    .description(
      "restore the disks of a point; no file gets its name before each byte was compared with its digest",
    )
    .argument("[repo]", REPO)
    .argument("[domain]", "whose point it is; left out where the repository has one domain only")
    .addOption(atPoint())
    .addOption(onlyDisks())
    .requiredOption(
      "--to <target>",
      "a folder for vda.qcow2 and so on; with one --disk a file, a block device or an NBD URI, too",
    )
    .option("--force", "replace files that exist, or write over a block device or an NBD export")
    .option(
      "--salvage",
      "of a damaged point: write what is provable, zeroes for the rest, and list that; exit 3",
    );
  withWhose(command);
  grouped(command, "A domain on the restored disks", () =>
    command
      .option(
        "--define [name]",
        "write the domain's definition for the restored disks (new name, UUID, MACs), and define it in libvirt; a name is given as --define=NAME",
      )
      .option(
        "--keep-identity",
        "with --define: for a domain that is gone, with its own name, UUID and MACs; refused while it is there",
      )
      .option("--xml <file>", "where that definition is written; without --define it is only written")
      .option(
        "--trust-definition",
        "let that definition name files, devices and programs of this host, as the stored one does",
      )
      .option(
        "--adapt",
        "with --define: change of that definition what this host has not (machine type, CPU, firmware, networks), and tell it",
      )
      .option("--connect <uri>", "libvirt connection, as virsh -c"),
  );
  grouped(command, "A machine that runs at once", () =>
    withCache(
      command
        .option(
          "--live",
          "with --define: start the domain at once, from the repository; its disks are filled meanwhile",
        )
        .option("--resume", "with --live: only go on with one that was killed")
        .option("--no-start", "with --live: only define the domain, and wait until somebody starts it"),
    ),
  );
  withTrust(withNetwork(withCopy(command))).action(
    run(async () => (await import("../commands/restore.js")).runRestore),
  );
}
