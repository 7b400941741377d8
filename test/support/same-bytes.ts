import { closeSync, fstatSync, openSync, readSync } from "node:fs";

/**
 * The only buffer for what is read. A buffer of its own for each file makes the garbage collector the largest
 * part of a test that compares hundreds of them.
 */
const piece = Buffer.allocUnsafeSlow(1024 * 1024);

/** Whether a file has these bytes, and nothing after them. */
export function hasBytes(path: string, content: Uint8Array): boolean {
  return compare(path, content, (size) => size === content.length);
}

/** Whether a file begins with these bytes. */
export function beginsWith(path: string, content: Uint8Array): boolean {
  return compare(path, content, (size) => size >= content.length);
}

function compare(path: string, content: Uint8Array, fits: (size: number) => boolean): boolean {
  const file = openSync(path, "r");
  try {
    if (!fits(fstatSync(file).size)) return false;
    for (let at = 0; at < content.length; ) {
      const count = readSync(file, piece, 0, Math.min(piece.length, content.length - at), at);
      if (count === 0 || !piece.subarray(0, count).equals(content.subarray(at, at + count))) return false;
      at += count;
    }
    return true;
  } finally {
    closeSync(file);
  }
}
