import type { Command } from "commander";
import { withWhose } from "../domain-options.js";
import { SCRATCH_PARENT } from "../guest-options.js";
import { size, withReconnect, withScratchReserve, withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addVerify(program: Command, run: Run): void {
  const command = program
    .command("verify")
    .description("hold every stored byte against its digest, look at chains and images; exit 3 on damage")
    .argument("<repo>")
    .argument("[domain]")
    .option("--at <point>", "only this point and those it depends on: an id, a time, or latest");
  withTrust(withLive(withWhose(command))).action(
    run(async () => (await import("../commands/verify.js")).runVerify),
  );
}

function withLive(command: Command): Command {
  return withReconnect(
    withScratchReserve(
      command
        .option("--live", "compare the running domain with its newest chain instead, and take no point")
        .option("--connect <uri>", "with --live: libvirt connection, as virsh -c")
        .option(
          "--scratch <dir>",
          `with --live: where the job's folder is made (default: "${SCRATCH_PARENT}")`,
        )
        .option("--limit-rate <bytes/s>", "with --live: read no faster than this, all disks together", size),
    ),
  );
}
