/**
 * Chunks of structured and extended replies: what each type may contain, and what it means. Section
 * "Structured reply types" of the specification.
 */

import { ProtocolError } from "../errors.js";
import { decodeText, readUint64, viewOf } from "./bytes.js";
import { CHUNK, COMMAND, MAX_STRING } from "./constants.js";
import { Descriptors, type DescriptorWidth, MAX_DESCRIPTORS } from "./descriptors.js";
import { commandName } from "./requests.js";

/** A request in flight, as seen by the parser. Every method may throw a ProtocolError. */
export interface ReplySink {
  readonly command: number;
  readonly offset: number;
  readonly length: number;
  /** Where the bytes [offset, offset + length) of the export go; undefined to skip them. */
  place(offset: number, length: number): ReplyTarget | undefined;
  /** The bytes [offset, offset + length) of the export read as zeroes. */
  hole(offset: number, length: number): void;
  status(contextId: number, descriptors: Descriptors): void;
  /**
   * `offset` is where the failure occurred, if the server says; `unknownType` is the type of an unknown
   * chunk.
   */
  fail(errorNumber: number, message: string, offset?: number, unknownType?: number): void;
}

/** A buffer to fill, or a consumer that takes the bytes in pieces as they arrive. */
export type ReplyTarget = Uint8Array | PieceTaker;

export interface PieceTaker {
  /** The piece is lent until the call returns. Must not throw. */
  take(piece: Uint8Array): void;
}

export interface Chunk {
  readonly type: number;
  readonly done: boolean;
  readonly cookie: number;
  readonly length: number;
  /** Undefined for a late chunk, whose payload is skipped. */
  readonly sink: ReplySink | undefined;
}

/** Longest payload of an error chunk: numbers and a string, with slack for types not yet defined. */
const MAX_ERROR_PAYLOAD = 2 * MAX_STRING;
/** Bytes of an error chunk without its message. */
const PLAIN_ERROR = 6;
const LOCATED_ERROR = 14;
export const MAX_STATUS_PAYLOAD = 8 + 16 * MAX_DESCRIPTORS;

/** Decodes the payload of any chunk that carries no data. */
export function decodeChunk(chunk: Chunk, sink: ReplySink, body: Uint8Array): void {
  const view = viewOf(body);
  switch (chunk.type) {
    case CHUNK.OFFSET_HOLE: {
      // 64-bit offset, 32-bit size
      const size = view.getUint32(8);
      if (size === 0) throw new ProtocolError("the server sent a hole of zero length");
      sink.hole(readUint64(view, 0, "the offset of a hole"), size);
      return;
    }
    case CHUNK.BLOCK_STATUS:
      // 32-bit context id, descriptors
      sink.status(view.getUint32(0), new Descriptors(body.subarray(4), 8));
      return;
    case CHUNK.BLOCK_STATUS_EXT:
      // 32-bit context id, 32-bit count, descriptors
      if (view.getUint32(4) !== (body.length - 8) / 16) {
        throw new ProtocolError("the server sent a block status whose count doesn't match its length");
      }
      sink.status(view.getUint32(0), new Descriptors(body.subarray(8), 16));
      return;
    case CHUNK.ERROR:
    case CHUNK.ERROR_OFFSET:
      decodeError(chunk, sink, body);
      return;
    default:
      decodeUnknownError(chunk, sink, body);
  }
}

/**
 * An error of an unknown type fails the request, whatever its fields say. It is read like the known types,
 * which all start with the same fields.
 */
export function decodeUnknownError(chunk: Chunk, sink: ReplySink, body: Uint8Array): void {
  if (body.length < PLAIN_ERROR) {
    sink.fail(0, "", undefined, chunk.type);
    return;
  }
  const view = viewOf(body);
  const end = PLAIN_ERROR + view.getUint16(4);
  const isText = end <= body.length && end - PLAIN_ERROR <= MAX_STRING;
  const text = isText ? decodeText(body.subarray(PLAIN_ERROR, end)) : "";
  sink.fail(view.getUint32(0), text, undefined, chunk.type);
}

/**
 * | at | bytes | |
 * |---|---|---|
 * | 0 | 4 | error number, not 0 |
 * | 4 | 2 | length of the message |
 * | 6 | length | message |
 * | 6 + length | 8 | ERROR_OFFSET only: where in the export |
 */
function decodeError(chunk: Chunk, sink: ReplySink, body: Uint8Array): void {
  const located = chunk.type === CHUNK.ERROR_OFFSET;
  const fixed = located ? LOCATED_ERROR : PLAIN_ERROR;
  const view = viewOf(body);
  const error = view.getUint32(0);
  const end = 6 + view.getUint16(4);
  if (error === 0) throw new ProtocolError("the server sent an error chunk without an error");
  if (end - 6 > Math.min(body.length - fixed, MAX_STRING)) {
    throw new ProtocolError("the server sent an error message that is longer than the chunk it comes in");
  }
  const message = decodeText(body.subarray(6, end));
  if (located) sink.fail(error, message, readUint64(view, end, "the offset of an error"));
  else sink.fail(error, message);
}

export function checkErrorLength(chunk: Chunk): void {
  if (chunk.length > MAX_ERROR_PAYLOAD) throw tooLong(chunk, MAX_ERROR_PAYLOAD);
  const least =
    chunk.type === CHUNK.ERROR ? PLAIN_ERROR : chunk.type === CHUNK.ERROR_OFFSET ? LOCATED_ERROR : 0;
  if (chunk.length < least) {
    throw new ProtocolError(`the server sent an error chunk of only ${chunk.length} bytes`);
  }
}

export function checkStatusLength(
  chunk: Chunk,
  sink: ReplySink,
  fixed: number,
  width: DescriptorWidth,
): void {
  requireCommand(chunk, sink, COMMAND.BLOCK_STATUS);
  const limit = fixed + width * MAX_DESCRIPTORS;
  if (chunk.length > limit) throw tooLong(chunk, limit);
  if (chunk.length < fixed + width || (chunk.length - fixed) % width !== 0) {
    throw new ProtocolError(`the server sent a block status of ${chunk.length} bytes`);
  }
}

export function requireCommand(chunk: Chunk, sink: ReplySink, command: number): void {
  if (sink.command === command) return;
  throw new ProtocolError(
    `the server sent a chunk of type ${chunk.type} in reply to a ${commandName(sink.command)}`,
  );
}

export function tooLong(chunk: Chunk, limit: number): ProtocolError {
  return new ProtocolError(
    `the server sent a chunk of type ${chunk.type} with ${chunk.length} bytes where ${limit} are possible`,
  );
}

export function unknownChunk(chunk: Chunk): ProtocolError {
  return new ProtocolError(`the server sent a chunk of the unknown type ${chunk.type}`);
}
