/** Big-endian numbers and strings, of which all messages consist. */

import { NbdError, ProtocolError } from "../errors.js";
import { MAX_STRING } from "./constants.js";

const HIGH = 2 ** 32;
/** The largest upper half of a number up to Number.MAX_SAFE_INTEGER. */
const SAFE_HIGH = 0x1fffff;

/** A DataView of exactly the bytes of `bytes`. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * The unsigned 64-bit number at `at`. All 64-bit values are read by this function, so no offset, size or flag
 * is ever rounded.
 * @throws {ProtocolError} beyond 2^53 - 1; the message contains `what`
 */
export function readUint64(view: DataView, at: number, what: string): number {
  const high = view.getUint32(at);
  if (high > SAFE_HIGH) {
    throw new ProtocolError(
      `the server sent ${view.getBigUint64(at)} as ${what}; numbers beyond 2^53 - 1 are not supported`,
      "NBD_NUMBER_TOO_LARGE",
    );
  }
  return high * HIGH + view.getUint32(at + 4);
}

/** Stores `value`, a non-negative safe integer, as an unsigned 64-bit number. */
export function writeUint64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / HIGH));
  view.setUint32(at + 4, value % HIGH);
}

const encoder = new TextEncoder();
/** Keeps a byte order mark: two names that differ only by one are different names. */
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/**
 * Encodes a name as the protocol requires: UTF-8 without NUL, at most 4096 bytes.
 * @throws {NbdError} NBD_ARGUMENT for any other
 */
export function encodeName(text: string, what: string): Uint8Array {
  const bytes = encoder.encode(text);
  if (bytes.length > MAX_STRING || bytes.includes(0)) {
    throw new NbdError("NBD_ARGUMENT", `${what} must be at most ${MAX_STRING} bytes of UTF-8 without NUL`);
  }
  return bytes;
}

/**
 * Decodes a peer's text. Invalid UTF-8 becomes U+FFFD: the text is only shown, or compared with what was
 * requested.
 */
export function decodeText(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

/** Joins pieces into one message, so that they are sent in one packet. */
export function concatBytes(...pieces: readonly Uint8Array[]): Uint8Array {
  const joined = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    joined.set(piece, at);
    at += piece.length;
  }
  return joined;
}
