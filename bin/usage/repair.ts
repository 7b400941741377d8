import type { Command } from "commander";
import { collect, examples, REPO, withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addRepair(program: Command, run: Run): void {
  const command = program
    .command("repair")
    .addHelpText(
      "after",
      examples(
        "nbdpull repair /srv/backups --dry-run",
        "nbdpull repair /srv/backups web --from-domain",
        "nbdpull repair /srv/backups web --from vda=nbd://localhost/vda",
      ),
    )
    .description("verify points, and mend what a digest proves; exit 3 if damage is left")
    .argument("[repo]", REPO)
    .argument("[domain]", "left out: every domain, each by itself")
    .option("--dry-run", "only tell what would be mended")
    .option(
      "--from <disk=uri>",
      "an NBD export of the disk as it is now, which may have what is damaged; with DOMAIN; may be given several times",
      collect,
    )
    .option(
      "--from-domain",
      "read the running domain's disks for what is damaged, by a backup job without a checkpoint; with DOMAIN",
    )
    .option("--scratch <dir>", "with --from-domain: where the job's folder is made")
    .option("--connect <uri>", "with --from-domain: libvirt connection, as virsh -c");
  withTrust(command).action(run(async () => (await import("../commands/repair.js")).runRepair));
}
