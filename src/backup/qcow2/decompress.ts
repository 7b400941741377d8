import { promisify } from "node:util";
import type { MessagePort } from "node:worker_threads";
import * as zlib from "node:zlib";
import { BackupError, DamageError, messageOf } from "../base/errors.js";
import type { ReadOptions } from "../image/image-file.js";

interface Options {
  readonly chunkSize: number;
  readonly maxOutputLength: number;
}

interface Decompress {
  /** On one of libuv's threads. */
  elsewhere(data: Uint8Array, options: Options): Promise<Buffer>;
  here(data: Uint8Array, options: Options): Buffer;
}

const DECOMPRESS: { readonly [method in "deflate" | "zstd"]: Decompress | undefined } = {
  deflate: { elsewhere: promisify<Uint8Array, Options, Buffer>(zlib.inflateRaw), here: zlib.inflateRawSync },
  zstd: zstd(),
};

/** Node has zstd from 22.15 on; its types lack it. */
function zstd(): Decompress | undefined {
  if (!("zstdDecompress" in zlib && "zstdDecompressSync" in zlib)) return undefined;
  const elsewhere = zlib.zstdDecompress as typeof zlib.inflateRaw;
  return {
    elsewhere: promisify<Uint8Array, Options, Buffer>(elsewhere),
    here: zlib.zstdDecompressSync as typeof zlib.inflateRawSync,
  };
}

/** Room behind a cluster, in bytes. */
const SPARE = 64;

/**
 * Decompresses one cluster of a qcow2 image. `data` may extend past the end of the compressed stream, up to
 * the end of its last sector. The result has exactly `clusterSize` bytes.
 *
 * @throws {DamageError} the data is not such a stream, or yields more or less than a cluster
 * @throws {BackupError} this version of Node lacks the method
 */
export async function decompressCluster(
  data: Uint8Array,
  method: "deflate" | "zstd",
  clusterSize: number,
  { blocking = false }: ReadOptions = {},
): Promise<Buffer> {
  const decompress = DECOMPRESS[method];
  if (decompress === undefined) {
    const message = `reading clusters compressed with zstd needs Node 22.15 or newer, this is ${process.versions.node}: use a newer Node`;
    throw new BackupError("E_QCOW2_UNSUPPORTED", message);
  }
  // If the output has room left at the end of the stream, the decompressor stops there. Otherwise it takes
  // the rest of the sector for another stream.
  const options = { chunkSize: clusterSize + SPARE, maxOutputLength: clusterSize };
  let cluster: Buffer;
  try {
    cluster = blocking ? decompress.here(data, options) : await decompress.elsewhere(data, options);
  } catch (cause) {
    const reason = messageOf(cause);
    throw new DamageError("E_QCOW2_COMPRESSED", reason, { cause });
  }
  if (cluster.length !== clusterSize) {
    const message = `it makes ${cluster.length} bytes, which is not a cluster`;
    throw new DamageError("E_QCOW2_COMPRESSED", message);
  }
  return cluster;
}

/**
 * Returns the memory of a cluster from {@link decompressCluster} that was copied: otherwise more than 100 MiB
 * of them wait for the garbage collector, which sees only small objects.
 */
export function giveBackCluster({ buffer, byteOffset, byteLength }: Buffer): void {
  // Small ones are parts of memory that Node gives to many.
  if (byteOffset !== 0 || buffer.byteLength !== byteLength + SPARE) return;
  if ("transfer" in buffer) (buffer.transfer as (length: number) => ArrayBuffer)(0);
  else nobody().postMessage(undefined, [buffer as ArrayBuffer]);
}

let closedPort: MessagePort | undefined;

/**
 * A port that is closed: what is moved to it is gone at once. Before Node 21 there is no other way to give
 * memory back.
 */
function nobody(): MessagePort {
  if (closedPort) return closedPort;
  const { MessageChannel } = process.getBuiltinModule("node:worker_threads");
  closedPort = new MessageChannel().port1;
  closedPort.close();
  return closedPort;
}
