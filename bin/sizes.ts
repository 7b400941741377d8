import prettyBytes from "pretty-bytes";
import { UsageError } from "../src/backup/base/errors.js";

const UNITS = { "": 1, K: 1024, M: 1024 ** 2, G: 1024 ** 3, T: 1024 ** 4 } as const;

/**
 * Parses a size such as `65536`, `64K` or `1.5G`; suffixes are powers of 1024.
 * @returns bytes
 * @throws {UsageError} for anything else, zero, or more than 2^53
 */
export function parseSize(text: string): number {
  const [, digits, unit] = /^(\d+(?:\.\d+)?)([KMGT]?)$/i.exec(text) ?? [];
  const bytes = Number(digits) * UNITS[(unit ?? "").toUpperCase() as keyof typeof UNITS];
  if (!Number.isSafeInteger(bytes) || bytes <= 0) {
    throw new UsageError("E_SIZE", `"${text}" is not a size: give bytes, or a number with K, M, G or T`);
  }
  return bytes;
}

/** A number of things, whose plural has an s: `1 extent`, `2 extents`. */
export function counted(number: number, thing: string): string {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}

/** A size for humans, such as `1.5 GiB`. */
export function human(bytes: number): string {
  return prettyBytes(bytes, { binary: true });
}
