import { MAX_STRING } from "../wire/constants.js";

/** Encodes `text` as UTF-8, truncated between characters to the protocol's limit on strings. */
export function clippedUtf8(text: string): Buffer {
  const bytes = Buffer.alloc(Math.min(Buffer.byteLength(text), MAX_STRING));
  // write() stops before a character that doesn't fit completely.
  return bytes.subarray(0, bytes.write(text));
}
