import type { Command } from "commander";
import { examples, withNetwork } from "../options.js";
import type { Run } from "../run.js";

export function addInfo(program: Command, run: Run): void {
  const command = program
    .command("info")
    .addHelpText("after", examples("nbdpull info nbd://host/vda", "nbdpull info nbd://host --list"))
    .description(
      "describe an export (with --list all of them): size, flags, block sizes, protocol, meta contexts",
    )
    .argument("<uri>", "nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")
    .option("--list", "all exports that the server lists");
  withNetwork(command).action(run(async () => (await import("../commands/info.js")).runInfo));
}
