import type { Command } from "commander";
import { examples, withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addInit(program: Command, run: Run): void {
  const command = program
    .command("init")
    .addHelpText("after", examples("nbdpull init /srv/backups", "nbdpull init s3://backups/site"))
    .description("make a repository, in a new folder, an empty one, or an object store")
    .argument("<repo>", "a folder, or s3://BUCKET/PREFIX")
    .option("--lifecycle", "object store: also have the bucket end uploads there that were begun a week ago");
  withTrust(command).action(run(async () => (await import("../commands/init.js")).runInit));
}
