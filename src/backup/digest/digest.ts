/**
 * The digests of an image's clusters. Beside each image of a point lies a digest file, unless digests were
 * switched off. Reads of the image are compared with it.
 *
 * Read this file first: it computes digests on the calling thread, by the algorithms of algorithms.ts. Then
 * read digest-file.ts (the format of a digest file), digest-file-writer.ts and digest-file-reader.ts.
 * digest-behind.ts computes the digests of an image that is being written, by the threads of
 * digest-threads.ts, or on the calling thread if they are few; digest-service.ts does the work.
 *
 * Nothing here compares an image with its digests: the chain room does that. Nothing here knows qcow2, NBD,
 * libvirt or repositories.
 */

import { hash } from "node:crypto";
import xxhash from "xxhash-wasm";
import { UsageError } from "../base/errors.js";
import { type Geometry, maskStretches } from "../image/image.js";
import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "./algorithms.js";

/** Computes digests on the calling thread. */
export interface Digester {
  readonly algorithm: DigestAlgorithm;
  /** Length of one digest in bytes. */
  readonly size: number;
  /** Writes the digest of `data` into `target` at `offset`. */
  digestInto(data: Uint8Array, target: Buffer, offset: number): void;
}

const digesters = new Map<DigestAlgorithm, Promise<Digester>>();

/** The digester of this thread. It has no state between two digests, so all images share it. */
export function createDigester(algorithm: DigestAlgorithm): Promise<Digester> {
  const known = digesters.get(algorithm) ?? newDigester(algorithm);
  digesters.set(algorithm, known);
  return known;
}

async function newDigester(algorithm: DigestAlgorithm): Promise<Digester> {
  const size = DIGEST_ALGORITHMS[algorithm].bytes;
  switch (algorithm) {
    case "xxh64": {
      const { h64Raw } = await xxhash();
      const digestInto = (data: Uint8Array, target: Buffer, offset: number): void => {
        target.writeBigUInt64BE(h64Raw(data), offset);
      };
      return { algorithm, size, digestInto };
    }
    case "sha256": {
      const digestInto = (data: Uint8Array, target: Buffer, offset: number): void => {
        // As a string, a digest costs no memory outside of the heap, which would be collected all the time.
        target.write(hash("sha256", data, "binary"), offset, size, "binary");
      };
      return { algorithm, size, digestInto };
    }
    default:
      throw unknownAlgorithm(algorithm);
  }
}

function unknownAlgorithm(algorithm: never): UsageError {
  return new UsageError("E_DIGEST_ALGORITHM", `unknown digest algorithm "${String(algorithm)}"`);
}

/**
 * The digests of a run: one for each cluster, concatenated. The digest of a partial cluster covers only its
 * data subclusters. Bytes beyond the end of the disk are left out.
 * `digest-behind.ts` with `digest-service.ts` makes the same digests from a file, so both have to agree.
 * @param slots the run's clusters, side by side; the last one may end with the disk
 */
export function digestClusters(
  digester: Digester,
  run: {
    readonly kind: "data" | "partial";
    readonly cluster: number;
    readonly count: number;
    readonly dataMask?: number;
  },
  slots: Buffer,
  geometry: Geometry,
): Buffer {
  const { clusterSize, virtualSize } = geometry;
  const digests = Buffer.allocUnsafe(run.count * digester.size);
  for (let i = 0; i < run.count; i += 1) {
    const length = Math.min(clusterSize, virtualSize - (run.cluster + i) * clusterSize);
    const slot = slots.subarray(i * clusterSize, i * clusterSize + length);
    const bytes = run.dataMask === undefined ? slot : maskedBytes(slot, run.dataMask, clusterSize);
    digester.digestInto(bytes, digests, i * digester.size);
  }
  return digests;
}

function maskedBytes(slot: Buffer, mask: number, clusterSize: number): Buffer {
  const pieces = maskStretches(mask, clusterSize).map((s) => slot.subarray(s.offset, s.offset + s.length));
  return Buffer.concat(pieces);
}
