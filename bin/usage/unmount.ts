import type { Command } from "commander";
import { examples } from "../options.js";
import type { Run } from "../run.js";

export function addUnmount(program: Command, run: Run): void {
  program
    .command("unmount")
    .addHelpText("after", examples("nbdpull unmount /mnt/web"))
    .description("end what nbdpull mount shows in a folder, also if that mount was killed")
    .argument("<dir>", "the folder, or one file in it")
    .option("--force", "also disks that are in use: who reads them gets errors")
    .action(run(async () => (await import("../commands/unmount.js")).runUnmount));
}
