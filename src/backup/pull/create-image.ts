import type { Geometry, ImageFormat, ResumableWriter } from "../image/image.js";
import { RawWriter } from "../image/raw-writer.js";
import type { Backing, Qcow2Writer } from "../qcow2/writer.js";

export interface NewImage {
  readonly format: ImageFormat;
  readonly geometry: Geometry;
  /** qcow2 only: the backing file that the header names. */
  readonly backing?: Backing | undefined;
  /** Raw increments only: path of the map that describes the extents. */
  readonly mapPath?: string | undefined;
}

/**
 * Creates an image at `path`, where nothing may exist. After a failure no new file is left.
 * @throws {UsageError} the geometry is beyond what the format can hold
 * @throws the file system's error, with `code`
 */
export async function createImage(path: string, image: NewImage): Promise<ResumableWriter> {
  switch (image.format) {
    case "qcow2":
      return await (await loadQcow2Writer()).create(path, image);
    case "raw":
      return await RawWriter.create(path, image);
    default:
      return image.format satisfies never;
  }
}

/**
 * Opens an image that a run left which was killed. Nothing may exist at the map's path.
 * @throws {DamageError} `E_IMAGE_FILE`: it is no regular file, or has other names too
 * @throws the file system's error, with `code`: ENOENT
 */
export async function reopenImage(path: string, image: NewImage): Promise<ResumableWriter> {
  switch (image.format) {
    case "qcow2":
      return await (await loadQcow2Writer()).reopen(path, image);
    case "raw":
      return await RawWriter.reopen(path, image);
    default:
      return image.format satisfies never;
  }
}

/** Loaded here: a pull into a raw image starts sooner without. */
export async function loadQcow2Writer(): Promise<typeof Qcow2Writer> {
  return (await import("../qcow2/writer.js")).Qcow2Writer;
}
