/** 64 KiB of zeroes, to compare with or to write. Must not be changed. */
export const ZEROES = Buffer.alloc(64 * 1024);

/**
 * Whether all bytes from `from` up to `to`, which is not included, are 0. In most cases the first or the last
 * byte decides; otherwise the bytes are compared at memory speed.
 */
export function isZero(bytes: Uint8Array, from = 0, to = bytes.length): boolean {
  if (to > from && (bytes[from] !== 0 || bytes[to - 1] !== 0)) return false;
  for (let at = from; at < to; at += ZEROES.length) {
    const stop = Math.min(at + ZEROES.length, to);
    if (ZEROES.compare(bytes, at, stop, 0, stop - at) !== 0) return false;
  }
  return true;
}
