import { realpath } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { PreconditionError, UsageError } from "../base/errors.js";
import { publish, refuseTarget, temporaryPathFor } from "../host/publish.js";
import type { ImageFormat } from "../image/image.js";
import { assertCompressible } from "../pull/compressible.js";
import { type PullImageOptions, type PullResult, pullImage } from "../pull/pull-image.js";
import type { CompressionMethod } from "../qcow2/can-compress.js";

export type PullFileOptions = Omit<
  PullImageOptions,
  "imagePath" | "mapPath" | "backing" | "digests" | "compress"
> & {
  readonly imagePath: string;
  /** For qcow2 increments: the image below, and its format. */
  readonly backing?: { readonly path: string; readonly format: ImageFormat } | undefined;
  /** Writes `IMAGE.digests` beside the image. */
  readonly digests?: NonNullable<PullImageOptions["digests"]>["algorithm"] | undefined;
  /** qcow2 only: compress every cluster that shrinks by it. */
  readonly compress?: CompressionMethod | undefined;
  /** Replace an existing file at `imagePath`. */
  readonly force: boolean;
};

/**
 * Pulls one export into a single image file, outside of any repository. The file is written under a temporary
 * name in the same folder, flushed, then renamed. The extents of a raw increment are in `IMAGE.map`.
 *
 * @throws {UsageError} the image exists, or it can't have the backing file or the compression that was asked
 *   for
 * @throws as `pullImage` does; nothing is left behind then
 */
export async function pullFile(options: PullFileOptions): Promise<PullResult> {
  const { imagePath, format, bitmap, backing, digests, compress, force, ...rest } = options;
  if (compress) assertCompressible(format, compress);
  if (backing && (format !== "qcow2" || bitmap === undefined)) {
    const message =
      "only an incremental qcow2 image has a backing file: give --bitmap and a .qcow2 name, or no --backing";
    throw new UsageError("E_BACKING", message);
  }
  const image = { temporary: temporaryPathFor(imagePath), final: imagePath };
  const map = { temporary: `${image.temporary}.map`, final: `${imagePath}.map` };
  const digestFile = { temporary: `${image.temporary}.digests`, final: `${imagePath}.digests` };
  const hasMap = format === "raw" && bitmap !== undefined;
  // The image is published last, so that its map and digests always exist before it.
  const files = [...(hasMap ? [map] : []), ...(digests ? [digestFile] : []), image];
  for (const { final } of files) await refuseTarget(final, force);
  const stale = force ? [map.final, digestFile.final] : [];

  return await pullImage({
    ...rest,
    format,
    bitmap,
    imagePath: image.temporary,
    backing: backing && { name: await backingName(imagePath, backing.path), format: backing.format },
    mapPath: hasMap ? map.temporary : undefined,
    digests: digests && { path: digestFile.temporary, algorithm: digests },
    compress: compress && { method: compress },
    publish: () => publish(files, { sync: options.sync, force, stale }),
  });
}

/**
 * The backing file's path relative to the image's real folder, so that both can be moved together.
 * @throws {PreconditionError} the backing file does not exist
 * @throws {UsageError} the backing file is the image itself
 */
async function backingName(imagePath: string, backingPath: string): Promise<string> {
  const backing = await realpath(backingPath).catch((cause: unknown) => {
    const message = `the backing image ${backingPath} does not exist: name the image that this increment is based on`;
    throw new PreconditionError("E_NO_BACKING", message, { cause, details: { path: backingPath } });
  });
  const folder = await realpath(dirname(imagePath));
  if (backing === join(folder, basename(imagePath))) {
    throw new UsageError("E_BACKING", `${imagePath} cannot be its own backing file: name another image`);
  }
  const name = relative(folder, backing);
  // QEMU would take a file name such as "nbd:x" for a protocol.
  return name.includes(":") ? `./${name}` : name;
}
