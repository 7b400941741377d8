/**
 * The format of a digest file, which says what every cluster that an image defines must be.
 * digest-file-writer.ts writes it and digest-file-reader.ts reads it. docs/repository-format.md has the same
 * tables. All numbers are unsigned and big-endian.
 *
 *     header, 64 bytes
 *       0   8  magic "NBDPDGST"
 *       8   4  version, 1
 *      12   4  algorithm: 1 XXH64 (seed 0, 8 bytes big-endian), 2 SHA-256 (32 bytes)
 *      16   4  cluster size
 *      20   4  flags: bit 0 = complete (a full copy): a cluster without a record reads as zeroes;
 *              otherwise such a cluster is clean
 *      24   8  virtual size in bytes
 *      32  32  zero
 *     records, ascending by cluster, never overlapping
 *       0   1  kind: 1 data, 2 zero, 3 partial, 255 end
 *       1   3  zero
 *       4   4  count of clusters: data 1 to 65,536, zero at least 1, partial 1, end 0
 *       8   8  first cluster (end: the number of records before it)
 *      16   8  partial only: data mask, zero mask, 4 bytes each, bit 0 = the first of 32 subclusters
 *       .   .  digests: one for each cluster of data, one for partial with a data mask, else none
 *
 * The digest of a data cluster covers its bytes, cut off at the virtual size. The digest of a partial cluster
 * covers only its data subclusters, one after the other, cut off likewise.
 */

import { DamageError } from "../base/errors.js";
import type { Geometry } from "../image/image.js";
import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "./algorithms.js";

/** A record of a digest file. `digests` holds the digests of the stored clusters, one after the other. */
export type DigestRun =
  | { readonly kind: "data"; readonly cluster: number; readonly count: number; readonly digests: Buffer }
  | { readonly kind: "zero"; readonly cluster: number; readonly count: number }
  | {
      readonly kind: "partial";
      readonly cluster: number;
      readonly count: 1;
      readonly dataMask: number;
      readonly zeroMask: number;
      readonly digests: Buffer;
    };

export interface DigestHeader {
  readonly algorithm: DigestAlgorithm;
  /** The disk's. */
  readonly geometry: Geometry;
  /** True for a full copy: a cluster without a record reads as zeroes. If false, it is clean. */
  readonly complete: boolean;
}

const MAGIC = Buffer.from("NBDPDGST", "latin1");
const VERSION = 1;
/** The header of the file. */
export const HEADER_BYTES = 64;
/** The fixed part of each record. */
export const HEAD_BYTES = 16;
export const MASKS_BYTES = 8;
export const KIND = { data: 1, zero: 2, partial: 3, end: 255 } as const;
/** The most clusters of a data record, so that a reader holds at most 2 MiB of digests for it. */
export const MAX_DATA_COUNT = 65_536;
export const MAX_ZERO_COUNT = 0xffffffff;
/** Bytes that a writer collects before it writes them. */
export const WRITE_BYTES = 1024 * 1024;
/**
 * Bytes that a reader reads at a time. A walk over a chain holds as many for each of its layers, and twice as
 * many where it reads ahead (overlay.ts).
 */
export const READ_BYTES = 256 * 1024;

export function encodeDigestHeader(header: DigestHeader): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  MAGIC.copy(bytes);
  bytes.writeUInt32BE(VERSION, 8);
  bytes.writeUInt32BE(DIGEST_ALGORITHMS[header.algorithm].id, 12);
  bytes.writeUInt32BE(header.geometry.clusterSize, 16);
  bytes.writeUInt32BE(header.complete ? 1 : 0, 20);
  bytes.writeBigUInt64BE(BigInt(header.geometry.virtualSize), 24);
  return bytes;
}

/**
 * @param bytes the first {@link HEADER_BYTES} of the file, or all of a shorter file
 * @throws {DamageError} `E_DIGEST_FILE`: this is no digest file, or its version, algorithm or sizes are
 *   invalid
 */
export function decodeHeader(bytes: Buffer, path: string): DigestHeader {
  if (bytes.length < HEADER_BYTES || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) {
    throw damagedFile(path, "it does not begin with a digest file's magic");
  }
  const version = bytes.readUInt32BE(8);
  if (version !== VERSION) throw damagedFile(path, `its version ${version} is unknown to this program`);
  const id = bytes.readUInt32BE(12);
  const algorithm = (["xxh64", "sha256"] as const).find((name) => DIGEST_ALGORITHMS[name].id === id);
  if (!algorithm) throw damagedFile(path, `its digest algorithm ${id} is unknown to this program`);
  const clusterSize = bytes.readUInt32BE(16);
  const virtualSize = Number(bytes.readBigUInt64BE(24));
  if (clusterSize < 512 || (clusterSize & (clusterSize - 1)) !== 0 || !Number.isSafeInteger(virtualSize)) {
    throw damagedFile(path, "its cluster size or virtual size is invalid");
  }
  return {
    algorithm,
    geometry: { clusterSize, virtualSize },
    complete: (bytes.readUInt32BE(20) & 1) === 1,
  };
}

/** The fixed part of a record. */
export function encodeHead(kind: number, count: number, cluster: number): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt8(kind, 0);
  head.writeUInt32BE(count, 4);
  head.writeBigUInt64BE(BigInt(cluster), 8);
  return head;
}

/** @param what the end of a sentence */
export function damagedFile(path: string, what: string): DamageError {
  return new DamageError("E_DIGEST_FILE", `the digest file ${path} is damaged: ${what}`, {
    details: { path },
  });
}
