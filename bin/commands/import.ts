import { UsageError } from "../../src/backup/base/errors.js";
import { DEFAULT_DIGESTS } from "../../src/backup/digest/algorithms.js";
import type { ImageFormat } from "../../src/backup/image/image.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { type ImageToImport, importImages } from "../../src/backup/take/import.js";
import { compressOf, digestsOf, formatOf, rateLimitOf, windowOf } from "../option-values.js";
import type { CopyOptions, CreateOptions, TrustOptions } from "../options.js";
import { asDisks, human } from "../output.js";
import type { Context } from "../run.js";
import { requireRepository } from "../target-repository.js";
import { prepareToWrite } from "../trust.js";
import { version } from "../version.js";

interface ImportOptions extends CopyOptions, CreateOptions, TrustOptions {
  readonly to: string;
  readonly domain: string;
  readonly uuid?: string;
  readonly disk: readonly string[];
  readonly imageFormat?: ImageFormat;
  readonly checkpoint?: string;
  readonly connect?: string;
  readonly offline?: true;
}

export async function runImport(
  { output, signal }: Context,
  options: ImportOptions,
  image: string | undefined,
): Promise<void> {
  const images = imagesOf(image, options);
  const format = options.format ?? "qcow2";
  const compress = compressOf(options, format);
  await requireRepository(options.to, options, signal);
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
        disks: asDisks(disks),
        extents,
        seconds,
        warnings: output.warnings,
      },
      [`${domain.name} ${id}: ${level} restore point in ${seconds.toFixed(2)} s`, ...lines],
    );
  } finally {
    progress.stop();
  }
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
