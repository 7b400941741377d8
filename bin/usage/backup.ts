import type { Command } from "commander";
import { DEFAULT_DIGESTS } from "../../src/backup/digest/algorithms.js";
import { withFullEvery } from "../full-every.js";
import { withGuest } from "../guest-options.js";
import {
  collect,
  examples,
  positive,
  withCopy,
  withCreate,
  withDigests,
  withProof,
  withReconnect,
  withTrust,
} from "../options.js";
import type { Run } from "../run.js";

export function addBackup(program: Command, run: Run): void {
  const command = program
    .command("backup")
    .addHelpText(
      "after",
      examples(
        "nbdpull backup web --to /srv/backups",
        "nbdpull backup --all --skip scratch --to /srv/backups --freeze auto --compress zstd",
        "nbdpull backup web db --to /srv/backups --exclude vdb --level full",
      ),
    )
    .description("back up libvirt domains, running or off: one restore point for each")
    .argument("[domains...]", "the domains: names, UUIDs, or numbers of their runs")
    .requiredOption("--to <repo>", "the repository (nbdpull init makes one)")
    .option("--all", "all domains that run and have disks (not those that are off)")
    .option("--skip <domain>", "with --all: not this domain; may be given several times", collect)
    .option(
      "--jobs <n>",
      "of several domains, how many at once; default 2, with --server 1, into an object store at most 3",
      positive,
    )
    .option("--moved", "the repository was moved to where it is now, or is reached by another path")
    .option("--no-resume", "clear away what a killed backup has left, instead of going on with its point")
    .option("--metrics <file>", "keep a metrics file for the node exporter's textfile collector (*.prom)");
  withCreate(
    withTrust(
      withReconnect(
        withProof(withDigests(withCopy(withGuest(withFullEvery(command))), `default ${DEFAULT_DIGESTS}`)),
      ),
    ),
  ).action(run(async () => (await import("../commands/backup.js")).runBackup));
}
