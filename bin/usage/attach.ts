import type { Command } from "commander";
import { DEFAULT_DIGESTS } from "../../src/backup/digest/algorithms.js";
import type { AttachOptions } from "../commands/attach.js";
import { withUuid } from "../domain-options.js";
import {
  examples,
  withCopy,
  withCreate,
  withDigests,
  withEncrypted,
  withNetwork,
  withProof,
  withReconnect,
  withScratchReserve,
  withTrust,
} from "../options.js";
import type { Run } from "../run.js";

export function addAttach(program: Command, run: Run): void {
  const command = program
    .command("attach")
    .addHelpText(
      "after",
      examples(
        "nbdpull attach web --to /srv/backups",
        "nbdpull attach --xml job.xml --domain web --checkpoint monday --to /srv/backups",
      ),
    )
    .description("store all disks of a backup job that already runs as one restore point")
    .argument("[domain]", "the domain whose job it is: its name, UUID, or the number of its run")
    .requiredOption("--to <repo>", "the repository (nbdpull init makes one)")
    .option(
      "--xml <file>",
      "the job's description from a file, or - for standard input, instead of asking libvirt",
    )
    .option("--domain <name>", "with --xml alone: whose points these are; libvirt is not asked")
    .option(
      "--checkpoint <name>",
      "the checkpoint created together with the job: makes the point a base for increments",
    )
    .option("--connect <uri>", "libvirt connection, as virsh -c")
    .option(
      "--end-job",
      "end the job after the commit, or when scratch files are short of room; otherwise it goes on, since somebody else began it",
    );
  withUuid(command, "with --domain");
  withCreate(
    withTrust(
      withReconnect(
        withNetwork(
          withProof(
            withDigests(withCopy(withScratchReserve(withEncrypted(command))), `default ${DEFAULT_DIGESTS}`),
          ),
        ),
      ),
    ),
  ).action(
    run(async (options: AttachOptions, _domain: string | undefined) => {
      const { loadForAttach, runAttach } = await import("../commands/attach.js");
      await loadForAttach(options);
      return runAttach;
    }),
  );
}
