import type { Command } from "commander";
import { Option } from "commander";
import { UsageError } from "../../src/backup/base/errors.js";
import { DEFAULT_DIGESTS } from "../../src/backup/digest/digest.js";
import type { ImageFormat } from "../../src/backup/image/image.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { type ImageToImport, importImages } from "../../src/backup/take/import.js";
import { withUuid } from "../domain-options.js";
import {
  type CopyOptions,
  compressOf,
  digestsOf,
  formatOf,
  rateLimitOf,
  windowOf,
  withCopy,
  withDigests,
} from "../options.js";
import { human } from "../output.js";
import type { Run } from "../run.js";
import { prepareToWrite, type TrustOptions, withTrust } from "../trust.js";
import { version } from "../version.js";

interface ImportOptions extends CopyOptions, TrustOptions {
  readonly to: string;
  readonly domain: string;
  readonly uuid?: string;
  readonly disk: readonly string[];
  readonly imageFormat?: ImageFormat;
  readonly checkpoint?: string;
  readonly connect?: string;
  readonly offline?: true;
}

export function addImport(program: Command, run: Run): void {
  const command = program
    .command("import")
    .description("take an existing full image as a restore point, so that no new full backup is needed")
    .argument("[image]", "the image, which must not change meanwhile; or several as --disk NAME=IMAGE")
    .requiredOption("--to <repo>", "the repository; made if the folder is empty or not there")
    .requiredOption("--domain <name>", "whose disk it is")
    .requiredOption(
      "--disk <name>",
      "which disk: vda; or vda=IMAGE, several times, for images of the same moment",
      (name, before: readonly string[] = []) => [...before, name],
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
  withTrust(withDigests(withCopy(command), `default ${DEFAULT_DIGESTS}`)).action(
    run<ImportOptions, [image: string | undefined]>(async ({ output, signal }, options, image) => {
      const images = imagesOf(image, options);
      const format = options.format ?? "qcow2";
      const compress = compressOf(options, format);
      await prepareToWrite(options.to, undefined, options, output);
      const progress = await output.progress();
      try {
        const { manifest, folder, extents, seconds } = await importImages({
          images,
          repositoryPath: options.to,
          trustRepository: options.trustRepository,
          domain: options.domain,
          uuid: options.uuid,
          checkpoint: options.checkpoint,
          libvirt: libvirtOf(options, signal),
          needLibvirt: options.connect !== undefined,
          format,
          digests: digestsOf(options, DEFAULT_DIGESTS),
          compress,
          sync: options.fsync,
          tool: `nbdpull ${version()}`,
          window: windowOf(options),
          rateLimit: rateLimitOf(options),
          signal,
          onProgress: (disk, p) => progress.update(disk, p.position, p.virtualSize, p.readBytes),
          onWarning: (message) => output.warn(message),
        });
        const { id, domain, level, checkpoint, createdAt, disks } = manifest;
        const lines = disks.map(
          (disk) => `  ${disk.name}: ${human(disk.virtualSize)}, full, ${human(disk.storedBytes)} stored`,
        );
        output.result(
          {
            id,
            domain: domain.name,
            uuid: domain.uuid,
            level,
            checkpoint: checkpoint?.name ?? null,
            createdAt,
            folder,
            disks,
            extents,
            seconds,
            warnings: output.warnings,
          },
          [`${domain.name} ${id}: ${level} restore point in ${seconds.toFixed(2)} s`, ...lines],
        );
      } finally {
        progress.stop();
      }
    }),
  );
}

/** One image for a single `--disk NAME`, or one for each disk. */
function imagesOf(image: string | undefined, { disk, imageFormat }: ImportOptions): ImageToImport[] {
  const named = disk.map((text) => {
    const [name = "", ...path] = text.split("=");
    return { name, path: path.length === 0 ? undefined : path.join("=") };
  });
  const only = named.length === 1 ? named[0] : undefined;
  if (image !== undefined && only?.path !== undefined) {
    throw new UsageError("E_USAGE", `name the image once: as argument, or as --disk ${only.name}=IMAGE`);
  }
  if (image !== undefined && only === undefined) {
    throw new UsageError("E_USAGE", "one image is one disk: for several give --disk NAME=IMAGE for each");
  }
  return named.map(({ name, path = image }) => {
    if (path === undefined || path === "") {
      throw new UsageError("E_USAGE", `which image is ${name}? Give IMAGE, or --disk ${name}=IMAGE`);
    }
    return { disk: name, path, format: formatOf(path, imageFormat), formatAsked: imageFormat !== undefined };
  });
}

function libvirtOf({ connect, offline }: ImportOptions, signal: AbortSignal): Libvirt | undefined {
  if (offline === undefined) return new Libvirt({ signal, ...(connect === undefined ? {} : { connect }) });
  if (connect === undefined) return undefined;
  throw new UsageError("E_USAGE", "--offline asks nobody: leave --connect out");
}
