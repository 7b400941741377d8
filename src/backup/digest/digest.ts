import { createHash } from "node:crypto";
import xxhash from "xxhash-wasm";
import { UsageError } from "../base/errors.js";
import { type Geometry, maskStretches } from "../image/image.js";

/**
 * `xxh64` (seed 0) finds rot and costs next to nothing; `sha256` finds forgery too and costs as much as the pull.
 */
export const DIGEST_ALGORITHMS = { xxh64: { id: 1, bytes: 8 }, sha256: { id: 2, bytes: 32 } } as const;
export type DigestAlgorithm = keyof typeof DIGEST_ALGORITHMS;

/** Digests one piece of memory at a time, on the calling thread. */
export interface Digester {
  readonly algorithm: DigestAlgorithm;
  /** Bytes of one digest. */
  readonly size: number;
  /** Writes the digest of `data` into `target` at `offset`. */
  digestInto(data: Uint8Array, target: Buffer, offset: number): void;
}

const digesters = new Map<DigestAlgorithm, Promise<Digester>>();

/** The thread's own: it keeps nothing between two digests, so that one is enough for all images. */
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
        createHash("sha256").update(data).digest().copy(target, offset);
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

/** @throws {UsageError} for any other text than `xxh64` and `sha256` */
export function parseDigestAlgorithm(text: string): DigestAlgorithm {
  if (text === "xxh64" || text === "sha256") return text;
  throw new UsageError("E_DIGEST_ALGORITHM", `unknown digest algorithm "${text}": use xxh64 or sha256`);
}

/**
 * The digests of a run whose clusters lie side by side in `slots`: one a cluster for data; one for a partial
 * cluster, over its data subclusters only; what lies beyond the end of the disk never counts.
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
