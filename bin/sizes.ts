import { UsageError } from "../src/backup/base/errors.js";

const UNITS = { "": 1, K: 1024, M: 1024 ** 2, G: 1024 ** 3, T: 1024 ** 4 } as const;

/**
 * A size as people give it: `65536`, `64K`, `1.5G`; powers of 1024.
 * @returns bytes
 * @throws {UsageError} anything else, zero, or more than 2^53
 */
export function parseSize(text: string): number {
  const [, digits, unit] = /^(\d+(?:\.\d+)?)([KMGT]?)$/i.exec(text) ?? [];
  const bytes = Number(digits) * UNITS[(unit ?? "").toUpperCase() as keyof typeof UNITS];
  if (!Number.isSafeInteger(bytes) || bytes <= 0) {
    throw new UsageError("E_SIZE", `"${text}" is not a size: give bytes, or a number with K, M, G or T`);
  }
  return bytes;
}
