import { UsageError } from "../base/errors.js";

/**
 * `sha256` finds damage and forgery. `xxh64` (seed 0) is a checksum: it costs almost nothing and finds damage
 * by accident, but anyone can make other data with the same value. `id` is the number in a digest file,
 * `bytes` the length of one digest.
 */
export const DIGEST_ALGORITHMS = {
  xxh64: { id: 1, bytes: 8, cryptographic: false },
  sha256: { id: 2, bytes: 32, cryptographic: true },
} as const;
export type DigestAlgorithm = keyof typeof DIGEST_ALGORITHMS;

/** What points and images get where nobody names an algorithm. */
export const DEFAULT_DIGESTS: DigestAlgorithm = "sha256";

/** False for a checksum, which finds damage by accident and no forgery. */
export function isCryptographic(algorithm: DigestAlgorithm): boolean {
  return DIGEST_ALGORITHMS[algorithm].cryptographic;
}

/** @throws {UsageError} `text` is neither `sha256` nor `xxh64` */
export function parseDigestAlgorithm(text: string): DigestAlgorithm {
  if (text === "xxh64" || text === "sha256") return text;
  throw new UsageError("E_DIGEST_ALGORITHM", `unknown digest algorithm "${text}": use sha256 or xxh64`);
}
