import * as zlib from "node:zlib";
import { BackupError, DamageError } from "../errors.js";

type Decompress = (
  data: Uint8Array,
  options: { readonly chunkSize: number; readonly maxOutputLength: number },
  callback: (error: Error | null, result: Buffer) => void,
) => void;

/** Node has zstd from 22.15 on. */
const zstdDecompress = "zstdDecompress" in zlib ? (zlib.zstdDecompress as Decompress) : undefined;

const DECOMPRESS = { deflate: zlib.inflateRaw as Decompress, zstd: zstdDecompress } as const;

/**
 * Decompresses one cluster of a qcow2 image. `data` may go on past the end of the compressed stream, up to the end
 * of its last sector; the result has `clusterSize` bytes exactly.
 *
 * @throws {DamageError} the data is no such stream, or makes more or less than a cluster
 * @throws {BackupError} this version of Node lacks the method
 */
export async function decompressCluster(
  data: Uint8Array,
  method: "deflate" | "zstd",
  clusterSize: number,
): Promise<Buffer> {
  const decompress = DECOMPRESS[method];
  if (decompress === undefined) {
    const message = "clusters compressed with zstd can be read with Node 22.15 or newer";
    throw new BackupError("E_QCOW2_UNSUPPORTED", message);
  }
  // With room left in the output at the end of the stream, the decompressor stops there, and doesn't take what
  // follows in the sector for another stream.
  const options = { chunkSize: clusterSize + 64, maxOutputLength: clusterSize };
  const cluster = await new Promise<Buffer>((resolve, reject) => {
    decompress(data, options, (cause, result) => {
      if (!cause) resolve(result);
      else
        reject(new DamageError("E_QCOW2_COMPRESSED", `can't be decompressed: ${cause.message}`, { cause }));
    });
  });
  if (cluster.length !== clusterSize) {
    const message = `decompresses to ${cluster.length} bytes, not to a cluster`;
    throw new DamageError("E_QCOW2_COMPRESSED", message);
  }
  return cluster;
}
