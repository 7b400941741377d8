import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { assertCompression, type CompressionMethod } from "./can-compress.js";

export interface Compression {
  readonly method: CompressionMethod;
  /** From 1, fast, to 9 (deflate) or 19 (zstd). */
  readonly level: number;
}

/**
 * Measured on programs and documents: deflate at level 6 takes twice as long as at level 1 and saves 6 %
 * more.
 */
export const DEFAULT_LEVEL = 1;

/** QEMU decompresses with a window of 4 KiB. */
const WINDOW_BITS = 12;
/** Measured to be a tenth faster than the default of 8. */
const MEMORY_LEVEL = 9;
/** Constants of zstd that the types of Node 20 lack. */
const ZSTD = { LEVEL: 100, WINDOW_LOG: 101, END: 2 } as const;

type CreateZstd = (options: {
  readonly chunkSize: number;
  readonly params: Readonly<Record<number, number>>;
}) => zlib.DeflateRaw;

type ZstdNow = (cluster: Buffer, options: { readonly params: Readonly<Record<number, number>> }) => Buffer;

/** Node has zstd from 22.15 on. */
const zstdNow = "zstdCompressSync" in zlib ? (zlib.zstdCompressSync as ZstdNow) : undefined;
const createZstd = "createZstdCompress" in zlib ? (zlib.createZstdCompress as CreateZstd) : undefined;

/** Compresses whole clusters for a qcow2 image, one at a time. */
export interface Compressor {
  /**
   * Overwrites the beginning of the cluster with the compressed stream. A cluster that doesn't shrink stays
   * as it is.
   * @returns the length of the stream, or of the cluster
   */
  compress(cluster: Buffer): Promise<number>;
  close(): void;
}

/**
 * Compresses on the calling thread, which waits meanwhile. For threads that do nothing else: libuv has only
 * four threads for the whole process.
 */
export class SameThreadCompressor implements Compressor {
  readonly #compress: (cluster: Buffer) => Buffer;

  /** @throws {UsageError} this version of Node lacks the method */
  constructor({ method, level }: Compression, clusterSize: number) {
    assertCompression(method);
    const params = { [ZSTD.LEVEL]: level, [ZSTD.WINDOW_LOG]: Math.log2(clusterSize) };
    const deflate = { level, chunkSize: clusterSize, windowBits: WINDOW_BITS, memLevel: MEMORY_LEVEL };
    this.#compress =
      method === "zstd" && zstdNow
        ? (cluster) => zstdNow(cluster, { params })
        : (cluster) => zlib.deflateRawSync(cluster, deflate);
  }

  async compress(cluster: Buffer): Promise<number> {
    const stream = this.#compress(cluster);
    if (stream.length >= cluster.length) return cluster.length;
    cluster.set(stream);
    return stream.length;
  }

  close(): void {}
}

/**
 * Compresses on libuv's threads. All clusters go through one stream of zlib: the functions for a single
 * piece, synchronous or not, were measured to leave so much garbage behind that two threads of them took
 * twice the memory.
 */
export class ClusterCompressor implements Compressor, Disposable {
  readonly #stream: zlib.DeflateRaw;
  readonly #finish: number;
  #parts: Buffer[] = [];
  #fail: ((error: Error) => void) | undefined;

  /** @throws {UsageError} this version of Node lacks the method */
  constructor({ method, level }: Compression, clusterSize: number) {
    assertCompression(method);
    const chunkSize = clusterSize;
    if (method === "zstd" && createZstd) {
      // A stream doesn't know how much input will come, and would allocate tables for far more than a
      // cluster.
      const params = { [ZSTD.LEVEL]: level, [ZSTD.WINDOW_LOG]: Math.log2(clusterSize) };
      this.#stream = createZstd({ chunkSize, params });
      this.#finish = ZSTD.END;
    } else {
      this.#stream = zlib.createDeflateRaw({
        level,
        chunkSize,
        windowBits: WINDOW_BITS,
        memLevel: MEMORY_LEVEL,
      });
      this.#finish = zlib.constants.Z_FINISH;
    }
    this.#stream.on("data", (part: Buffer) => this.#parts.push(part));
    this.#stream.on("error", (error) => this.#fail?.(error));
  }

  async compress(cluster: Buffer): Promise<number> {
    this.#parts = [];
    await new Promise<void>((resolve, reject) => {
      this.#fail = reject;
      this.#stream.write(cluster);
      this.#stream.flush(this.#finish, (error?: Error | null) => (error ? reject(error) : resolve()));
    });
    assert.equal(this.#stream.readableLength, 0, "compressed data has not arrived");
    this.#stream.reset();
    const length = this.#parts.reduce((sum, part) => sum + part.length, 0);
    if (length >= cluster.length) return cluster.length;
    let at = 0;
    for (const part of this.#parts) {
      cluster.set(part, at);
      at += part.length;
    }
    this.#parts = [];
    return length;
  }

  close(): void {
    this.#stream.destroy();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
