import type { Command } from "commander";
import { DEFAULT_DIGESTS } from "../../src/backup/digest/algorithms.js";
import { withFullEvery } from "../full-every.js";
import { withGuest } from "../guest-options.js";
import { withMaxAge } from "../max-age.js";
import { MOST_SHARES, wholeNumber } from "../network-limits.js";
import {
  collect,
  examples,
  positive,
  withCopy,
  withDigests,
  withProof,
  withReconnect,
  withTrust,
} from "../options.js";
import { withRetention } from "../retention-options.js";
import type { Run } from "../run.js";

export function addRun(program: Command, run: Run): void {
  const command = program
    .command("run")
    .addHelpText("after", examples("nbdpull run", "nbdpull run --config /etc/nbdpull-weekly.toml"))
    .description("back up, prune, verify and report as the configuration file says, for a timer")
    .argument("[domains...]", "these domains, instead of those of the configuration file")
    .requiredOption("--to <repo>", "the repository")
    .option("--all", "all domains that run and have disks (not those that are off)")
    .option("--skip <domain>", "with --all: not this domain; may be given several times", collect)
    .option(
      "--jobs <n>",
      "of several domains, how many at once; default 2, with --server 1, into an object store at most 3",
      positive,
    )
    .option(
      "--verify-share <n>",
      "verify one of N shares of the points, another one every day; left out: none",
      wholeNumber(1, MOST_SHARES),
    )
    .option("--report <file>", "at the end write the report of the repository, as report --html does")
    .option("--metrics <file>", "keep a metrics file for the node exporter's textfile collector (*.prom)");
  withTrust(
    withReconnect(
      withProof(
        withDigests(
          withCopy(withGuest(withFullEvery(withRetention(withMaxAge(command))))),
          `default ${DEFAULT_DIGESTS}`,
        ),
      ),
    ),
  ).action(run(async () => (await import("../commands/run.js")).runAll));
}
