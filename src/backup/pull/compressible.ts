import { UsageError } from "../base/errors.js";
import type { ImageFormat } from "../image/image.js";
import { assertCompression, type CompressionMethod } from "../qcow2/can-compress.js";

/** Most bytes of a segment, which a thread takes as one job. */
export const MOST_COMPRESSED_AT_A_TIME = 1024 * 1024;

/**
 * Throws if an image can't be compressed this way. Call it before the work begins.
 * @throws {UsageError} `E_COMPRESS_FORMAT`: the format has no compression; or this version of Node lacks the
 *   method
 */
export function assertCompressible(format: ImageFormat, method: CompressionMethod): void {
  if (format !== "qcow2") {
    const message = `a ${format} image can't be compressed: use --format qcow2, a .qcow2 name, or no --compress`;
    throw new UsageError("E_COMPRESS_FORMAT", message);
  }
  assertCompression(method);
}
