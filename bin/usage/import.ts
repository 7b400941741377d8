import type { Command } from "commander";
import { Option } from "commander";
import { DEFAULT_DIGESTS } from "../../src/backup/digest/algorithms.js";
import { withUuid } from "../domain-options.js";
import { collect, examples, withCopy, withCreate, withDigests, withTrust } from "../options.js";
import type { Run } from "../run.js";

export function addImport(program: Command, run: Run): void {
  const command = program
    .command("import")
    .addHelpText(
      "after",
      examples(
        "nbdpull import web.qcow2 --domain web --disk vda --to /srv/backups",
        "nbdpull import --domain web --disk vda=a.qcow2 --disk vdb=b.qcow2 --to /srv/backups",
      ),
    )
    .description("store an existing full image as a restore point, so that no new full backup is needed")
    .argument("[image]", "the image, which must not change meanwhile; or several as --disk NAME=IMAGE")
    .requiredOption("--to <repo>", "the repository (nbdpull init makes one)")
    .requiredOption("--domain <name>", "whose disk it is")
    .requiredOption(
      "--disk <name>",
      "which disk: vda; or vda=IMAGE, several times, for images of the same moment",
      collect,
    )
    .addOption(
      new Option(
        "--image-format <format>",
        "format of the image; by default its suffix decides: .qcow2, anything else is raw",
      ).choices(["qcow2", "raw"]),
    )
    .option("--checkpoint <name>", "the checkpoint as of which the image is: makes it a base for increments")
    .option("--connect <uri>", "libvirt connection, as virsh -c; it has to answer then")
    .option("--offline", "do not ask libvirt about the checkpoint");
  withUuid(command, "where libvirt does not tell it");
  withCreate(withTrust(withDigests(withCopy(command), `default ${DEFAULT_DIGESTS}`))).action(
    run(async () => (await import("../commands/import.js")).runImport),
  );
}
