import type { Command } from "commander";
import type { PullOptions } from "../commands/pull.js";
import { examples, withCopy, withDigests, withNetwork, withReconnect } from "../options.js";
import type { Run } from "../run.js";

export function addPull(program: Command, run: Run): void {
  const command = program
    .command("pull")
    .addHelpText(
      "after",
      examples(
        "nbdpull pull nbd://host/vda vda.qcow2",
        "nbdpull pull nbd://host/vda since-monday.qcow2 --bitmap monday --backing vda.qcow2",
        "nbdpull pull nbd://host/vda - | zstd > vda.raw.zst",
      ),
    )
    .description("copy one export into one image: everything, or with --bitmap what has changed")
    .argument("<uri>", "nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")
    .argument(
      "<image>",
      "the image to write: .qcow2, anything else is raw; - writes the whole disk to standard output, raw",
    )
    .option(
      "--bitmap <name>",
      "only what this dirty bitmap marks; a missing bitmap is exit 4, never a full copy",
    )
    .option("--backing <image>", "name this image as the one below (incremental qcow2 only)")
    .option("--backing-format <format>", "its format; by default its suffix decides, it is never probed")
    .option("--force", "replace the image if it exists");
  withReconnect(withNetwork(withDigests(withCopy(command), "by default none for a single image"))).action(
    run(async (options: PullOptions, _uri: string, imagePath: string) => {
      const { loadForImage, runPull } = await import("../commands/pull.js");
      await loadForImage(options, imagePath);
      return runPull;
    }),
  );
}
