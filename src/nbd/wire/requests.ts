/** Requests of the transmission phase. Section "Transmission phase: request message" of the specification. */

import { viewOf, writeUint64 } from "./bytes.js";
import { COMMAND, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC } from "./constants.js";

/** Format of requests and replies, as negotiated. */
export type Protocol = "simple" | "structured" | "extended";

interface Request {
  readonly command: number;
  readonly flags: number;
  readonly cookie: number;
  readonly offset: number;
  /**
   * Length of the affected range or, for a write, of the payload; below 2^32 unless the protocol is extended.
   */
  readonly length: number;
}

const COMPACT_LENGTH = 28;
const EXTENDED_LENGTH = 32;

/**
 * | at | bytes | compact | at | bytes | extended |
 * |---|---|---|---|---|---|
 * | 0 | 4 | magic 0x25609513 | 0 | 4 | magic 0x21e41c71 |
 * | 4 | 2 | command flags | 4 | 2 | command flags |
 * | 6 | 2 | command | 6 | 2 | command |
 * | 8 | 8 | cookie | 8 | 8 | cookie |
 * | 16 | 8 | offset | 16 | 8 | offset |
 * | 24 | 4 | length | 24 | 8 | length |
 */
export function encodeRequest(protocol: Protocol, request: Request): Uint8Array {
  const extended = protocol === "extended";
  const bytes = new Uint8Array(extended ? EXTENDED_LENGTH : COMPACT_LENGTH);
  const view = viewOf(bytes);
  view.setUint32(0, extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC);
  view.setUint16(4, request.flags);
  view.setUint16(6, request.command);
  writeUint64(view, 8, request.cookie);
  writeUint64(view, 16, request.offset);
  if (extended) writeUint64(view, 24, request.length);
  else view.setUint32(24, request.length);
  return bytes;
}

const NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(COMMAND).map(([name, number]) => [number, name.toLowerCase().replace("_", " ")]),
);

/** The name of a command for messages: `read`, `block status`. */
export function commandName(command: number): string {
  return NAMES.get(command) ?? `command ${command}`;
}
