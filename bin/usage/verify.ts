import type { Command } from "commander";
import { withWhose } from "../domain-options.js";
import { SCRATCH_PARENT } from "../guest-options.js";
import { MOST_SHARES, wholeNumber } from "../network-limits.js";
import { grouped } from "../option-groups.js";
import { examples, REPO, size, withReconnect, withScratchReserve, withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addVerify(program: Command, run: Run): void {
  const command = program
    .command("verify")
    .addHelpText(
      "after",
      examples(
        "nbdpull verify /srv/backups",
        "nbdpull verify /srv/backups --share 7",
        "nbdpull verify /srv/backups web --live",
      ),
    )
    .description("compare each stored byte with its digest, and check chains and images; exit 3 on damage")
    .argument("[repo]", REPO)
    .argument("[domain]", "left out: every domain")
    .option(
      "--share <n>",
      "only one of N shares of the points, another one every day: in N days each is verified",
      wholeNumber(1, MOST_SHARES),
    )
    .option("--metrics <file>", "keep a metrics file for the node exporter's textfile collector (*.prom)")
    .option("--at <point>", "only this point and those it depends on: an id, a time, or latest");
  withTrust(withLive(withWhose(command))).action(
    run(async () => (await import("../commands/verify.js")).runVerify),
  );
}

function withLive(command: Command): Command {
  return grouped(command, "The living disk", () =>
    withReconnect(
      withScratchReserve(
        command
          .option("--live", "compare the running domain with its newest chain instead, and take no point")
          .option("--connect <uri>", "with --live: libvirt connection, as virsh -c")
          .option(
            "--scratch <dir>",
            `with --live: where the job's folder is made (default: "${SCRATCH_PARENT}")`,
          )
          .option(
            "--limit-rate <bytes/s>",
            "with --live: read no faster than this, all disks together",
            size,
          ),
      ),
    ),
  );
}
