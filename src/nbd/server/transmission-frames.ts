/**
 * Encodes and decodes the frames of the transmission phase. All numbers are big-endian and unsigned. Section
 * names are those of the specification (doc/proto.md).
 */
import {
  CHUNK,
  CHUNK_FLAG_DONE,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  REQUEST_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from "../wire/constants.js";
import { clippedUtf8 } from "./clipped-utf8.js";
import { ClientFault } from "./errors.js";
import type { StatusExtent } from "./export.js";

/** Format of the replies on a connection, as negotiated. */
export type ReplyMode = "simple" | "structured" | "extended";

export interface Request {
  readonly flags: number;
  readonly type: number;
  /** Offset in bytes. Inexact above 2^53, beyond the end of every export, but sufficient to refuse it. */
  readonly offset: number;
  /** Length in bytes; inexact like `offset`. For a request with payload, the length of the payload. */
  readonly length: number;
  /**
   * Fields that every reply repeats: the cookie (8 bytes) and, in extended mode, the exact offset (16 bytes
   * in all).
   */
  readonly echo: Uint8Array;
}

export function requestBytes(mode: ReplyMode): number {
  return mode === "extended" ? 32 : 28;
}

/**
 * "Request message" (28 bytes) and "extended request message" (32 bytes):
 *
 *      0  u32  magic 0x25609513         0x21e41c71
 *      4  u16  command flags            the same
 *      6  u16  type                     the same
 *      8  u64  cookie                   the same
 *     16  u64  offset                   the same
 *     24  u32  length                   u64
 */
export function decodeRequest(frame: Buffer, mode: ReplyMode): Request {
  const extended = mode === "extended";
  const magic = frame.readUInt32BE(0);
  if (magic !== (extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC)) {
    throw new ClientFault("BAD_MAGIC", `the client sent 0x${magic.toString(16)} instead of a request`);
  }
  return {
    flags: frame.readUInt16BE(4),
    type: frame.readUInt16BE(6),
    offset: readU64(frame, 16),
    length: extended ? readU64(frame, 24) : frame.readUInt32BE(24),
    echo: frame.subarray(8, extended ? 24 : 16),
  };
}

/**
 * "Simple reply message" (16 bytes; after a successful READ the data follows):
 *
 *      0  u32  magic 0x67446698
 *      4  u32  error, 0 for success
 *      8  u64  cookie
 */
export function encodeSimpleReply(request: Request, error: number): Buffer {
  const frame = Buffer.alloc(16);
  frame.writeUInt32BE(SIMPLE_REPLY_MAGIC, 0);
  frame.writeUInt32BE(error, 4);
  frame.set(request.echo, 8);
  return frame;
}

/** Header fields of a chunk: its request, and whether it is the last one of the reply. */
export interface ChunkHead {
  readonly mode: "structured" | "extended";
  readonly request: Request;
  readonly done: boolean;
}

/** NBD_REPLY_TYPE_NONE: no payload, always the last chunk. */
export function encodeDone(head: ChunkHead): Buffer {
  return beginChunk({ ...head, done: true }, CHUNK.NONE, 0, 0).frame;
}

/** NBD_REPLY_TYPE_OFFSET_DATA: u64 offset, then the data, which the caller sends right after this frame. */
export function encodeDataHead(head: ChunkHead, offset: number, dataBytes: number): Buffer {
  const { frame, at } = beginChunk(head, CHUNK.OFFSET_DATA, 8, dataBytes);
  writeU64(frame, offset, at);
  return frame;
}

/** NBD_REPLY_TYPE_OFFSET_HOLE: u64 offset, u32 length of the zeroes. */
export function encodeHole(head: ChunkHead, offset: number, holeBytes: number): Buffer {
  const { frame, at } = beginChunk(head, CHUNK.OFFSET_HOLE, 12, 0);
  writeU64(frame, offset, at);
  frame.writeUInt32BE(holeBytes, at + 8);
  return frame;
}

/** NBD_REPLY_TYPE_ERROR: u32 error, u16 length of the text, text for humans. */
export function encodeErrorChunk(head: ChunkHead, error: number, message: string): Buffer {
  const text = clippedUtf8(message);
  const { frame, at } = beginChunk(head, CHUNK.ERROR, 6 + text.length, 0);
  frame.writeUInt32BE(error, at);
  frame.writeUInt16BE(text.length, at + 4);
  frame.set(text, at + 6);
  return frame;
}

/**
 * The extents of one meta context, from the request's offset on.
 *
 *     NBD_REPLY_TYPE_BLOCK_STATUS       NBD_REPLY_TYPE_BLOCK_STATUS_EXT (extended mode)
 *     u32  context id                   u32  context id
 *     n x (u32 length, u32 flags)       u32  n
 *                                       n x (u64 length, u64 flags)
 */
export function encodeBlockStatus(
  head: ChunkHead,
  contextId: number,
  extents: readonly StatusExtent[],
): Buffer {
  if (head.mode === "extended") {
    const { frame, at } = beginChunk(head, CHUNK.BLOCK_STATUS_EXT, 8 + 16 * extents.length, 0);
    frame.writeUInt32BE(contextId, at);
    frame.writeUInt32BE(extents.length, at + 4);
    extents.forEach(({ length, flags }, index) => {
      writeU64(frame, length, at + 8 + 16 * index);
      writeU64(frame, flags, at + 16 + 16 * index);
    });
    return frame;
  }
  const { frame, at } = beginChunk(head, CHUNK.BLOCK_STATUS, 4 + 8 * extents.length, 0);
  frame.writeUInt32BE(contextId, at);
  extents.forEach(({ length, flags }, index) => {
    frame.writeUInt32BE(length, at + 4 + 8 * index);
    frame.writeUInt32BE(flags, at + 8 + 8 * index);
  });
  return frame;
}

/**
 * "Structured reply chunk message" (20 bytes) and "extended reply chunk message" (32 bytes):
 *
 *      0  u32  magic 0x668e33ef         0x6e8a278c
 *      4  u16  flags: 1 = DONE          the same
 *      6  u16  type                     the same
 *      8  u64  cookie                   the same
 *     16  u32  length of the payload    u64  the request's offset
 *     24                                u64  length of the payload
 *
 * @param fieldBytes room in the frame after the header, from `at` on
 * @param dataBytes payload that follows the frame
 */
function beginChunk(
  head: ChunkHead,
  type: number,
  fieldBytes: number,
  dataBytes: number,
): { readonly frame: Buffer; readonly at: number } {
  const extended = head.mode === "extended";
  const at = extended ? 32 : 20;
  const frame = Buffer.alloc(at + fieldBytes);
  frame.writeUInt32BE(extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC, 0);
  frame.writeUInt16BE(head.done ? CHUNK_FLAG_DONE : 0, 4);
  frame.writeUInt16BE(type, 6);
  frame.set(head.request.echo, 8);
  if (extended) writeU64(frame, fieldBytes + dataBytes, 24);
  else frame.writeUInt32BE(fieldBytes + dataBytes, 16);
  return { frame, at };
}

function readU64(frame: Buffer, at: number): number {
  return frame.readUInt32BE(at) * 2 ** 32 + frame.readUInt32BE(at + 4);
}

/** `value` is a safe integer. */
function writeU64(frame: Buffer, value: number, at: number): void {
  frame.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  frame.writeUInt32BE(value % 2 ** 32, at + 4);
}
