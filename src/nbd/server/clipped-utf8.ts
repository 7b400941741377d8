import { MAX_STRING } from "../wire/constants.js";

/** `text` as UTF-8, cut between characters where it is longer than a string may be in the protocol. */
export function clippedUtf8(text: string): Buffer {
  const bytes = Buffer.alloc(Math.min(Buffer.byteLength(text), MAX_STRING));
  // write() stops before a character that doesn't fit whole.
  return bytes.subarray(0, bytes.write(text));
}
