/**
 * Parses the replies of the transmission phase as their bytes arrive. The parser does no I/O: it says where
 * the next bytes should go, and is told how many have arrived. The payload of a read that fills a buffer goes
 * straight there; only bytes that arrive together with a header are copied.
 *
 *     |header 20|offset 8|payload ....................................|header 20|..
 *     '------- scratch, 256 bytes --------'--- the reader's buffer ---'-- scratch --
 *
 * A read in pieces gets them from the scratch buffer, which is larger in that case, and nothing is copied:
 *
 *     |header 20|offset 8|payload ...............|header 20|offset 8|payload ................
 *     '--- scratch, 256 KiB -----------'--- scratch again, from its beginning ---'-- scratch --
 *
 * The {@link ReplySink} interprets the reply to its request.
 * Sections "Simple reply message", "Structured reply chunk message" and "Structured reply types" of the
 * specification.
 */

import { ProtocolError } from "../errors.js";
import { readUint64, viewOf } from "./bytes.js";
import {
  type Chunk,
  checkErrorLength,
  checkStatusLength,
  decodeChunk,
  decodeUnknownError,
  MAX_STATUS_PAYLOAD,
  type PieceTaker,
  type ReplySink,
  type ReplyTarget,
  requireCommand,
  tooLong,
  unknownChunk,
} from "./chunks.js";
import {
  CHUNK,
  CHUNK_FLAG_DONE,
  CHUNK_IS_ERROR,
  COMMAND,
  EXTENDED_REPLY_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from "./constants.js";
import type { Protocol } from "./requests.js";

export interface ReplyHandler {
  /**
   * The request with this cookie, or undefined for a late chunk, which has to be skipped.
   * @throws {ProtocolError} for a cookie that no request had
   */
  find(cookie: number): ReplySink | undefined;
  /** The last chunk of the reply with this cookie has arrived. */
  finished(cookie: number): void;
}

const SCRATCH = 256;
/** Few system calls, and still in the processor's cache (docs/performance-history.md). */
const WIDE_SCRATCH = 256 * 1024;
const PAGE = 4096;
/** Payloads of at most so many bytes wait until they are complete: moving a part costs less than a write. */
const MOST_WHOLE = 64 * 1024;
const DISCARD = 64 * 1024;
const SIMPLE_HEADER = 16;
const STRUCTURED_HEADER = 20;
const EXTENDED_HEADER = 32;
/** Bytes of the 64-bit offset at the start of a data chunk. */
const DATA_OFFSET = 8;

export class ReplyParser {
  readonly #protocol: Protocol;
  readonly #handler: ReplyHandler;

  /** Bytes #start..#end of the scratch buffer are received but not yet parsed. */
  #scratch = new Uint8Array(SCRATCH);
  #view = viewOf(this.#scratch);
  #isWide = false;
  #start = 0;
  #end = 0;

  /** The data chunk whose offset is awaited, or the chunk whose payload is arriving. */
  #chunk: Chunk | undefined;
  /** Gets the current payload, or the buffer does, from #filled on. If both are undefined, it is skipped. */
  #taker: PieceTaker | undefined;
  #buffer: Uint8Array | undefined;
  #filled = 0;
  /** Offset of the current payload in the export. */
  #offset = 0;
  /**
   * Bytes of payload still to come. While this isn't 0, the scratch buffer holds at most a part of a piece.
   */
  #missing = 0;
  #discard: Uint8Array | undefined;

  constructor(protocol: Protocol, handler: ReplyHandler) {
    this.#protocol = protocol;
    this.#handler = handler;
  }

  /** The read whose buffer is the current target, and thus can't be returned to its owner. */
  get receivingFor(): ReplySink | undefined {
    return this.#missing > 0 && this.#chunk?.type === CHUNK.OFFSET_DATA && this.#buffer !== undefined
      ? this.#chunk.sink
      : undefined;
  }

  /** Prepares for reads in pieces: from the next {@link target} on, the scratch buffer is large. */
  expectLargeReads(): void {
    this.#isWide = true;
  }

  /** Where the next bytes should go; never empty. Valid until the next call of {@link received}. */
  target(): Uint8Array {
    if (this.#missing > 0 && this.#taker === undefined) {
      const buffer = this.#buffer;
      if (buffer !== undefined) return buffer.subarray(this.#filled, this.#filled + this.#missing);
      this.#discard ??= new Uint8Array(DISCARD);
      return this.#missing < DISCARD ? this.#discard.subarray(0, this.#missing) : this.#discard;
    }
    if (this.#isWide && this.#scratch.length < WIDE_SCRATCH) this.#grow();
    if (this.#start > 0) {
      this.#scratch.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    return this.#scratch.subarray(this.#end);
  }

  /**
   * `count` bytes are now at the start of the last target.
   * @throws {ProtocolError} after which the parser must not be used again
   */
  received(count: number): void {
    if (this.#missing > 0 && this.#taker === undefined) this.#progress(count);
    else this.#end += count;
    while (this.#advance());
  }

  /**
   * How many of `count` bytes of payload to pass on now. A small payload is passed on whole. Pieces of a
   * larger one end at page boundaries of the export, so that they can be written page by page; the rest waits
   * for the bytes that follow.
   */
  #presentable(count: number): number {
    if (this.#taker === undefined || count === this.#missing) return count;
    if (this.#filled === 0 && this.#isWide && this.#missing <= MOST_WHOLE) return 0;
    const end = this.#offset + this.#filled + count;
    return Math.max(0, count - (end % PAGE));
  }

  #grow(): void {
    const wide = new Uint8Array(WIDE_SCRATCH);
    wide.set(this.#scratch.subarray(0, this.#end));
    this.#scratch = wide;
    this.#view = viewOf(wide);
  }

  /** Parses one step from the scratch buffer; false if that needs more bytes. */
  #advance(): boolean {
    const available = this.#end - this.#start;
    if (this.#missing > 0) {
      const count = this.#presentable(Math.min(available, this.#missing));
      if (count === 0) return false;
      const bytes = this.#scratch.subarray(this.#start, this.#start + count);
      if (this.#taker !== undefined) this.#taker.take(bytes);
      else this.#buffer?.set(bytes, this.#filled);
      this.#start += count;
      this.#progress(count);
      return this.#missing === 0;
    }
    if (this.#chunk !== undefined) {
      if (available < DATA_OFFSET) return false;
      this.#beginData(this.#chunk, readUint64(this.#view, this.#start, "the offset of a data chunk"));
      this.#start += DATA_OFFSET;
      return true;
    }
    return this.#parseHeader(available);
  }

  #progress(count: number): void {
    this.#filled += count;
    this.#missing -= count;
    if (this.#missing > 0) return;
    const chunk = this.#chunk;
    if (chunk === undefined) return;
    const body = this.#buffer;
    if (chunk.type !== CHUNK.OFFSET_DATA && chunk.sink !== undefined && body !== undefined) {
      decodeChunk(chunk, chunk.sink, body);
    }
    this.#endChunk(chunk);
  }

  /** `length` bytes of payload follow; without a target they are skipped. */
  #expect(chunk: Chunk, into: ReplyTarget | undefined, length: number): void {
    this.#chunk = chunk;
    if (into instanceof Uint8Array) this.#buffer = into;
    else this.#taker = into;
    this.#filled = 0;
    this.#missing = length;
    if (length === 0) this.#endChunk(chunk);
  }

  #endChunk(chunk: Chunk): void {
    this.#chunk = undefined;
    this.#taker = undefined;
    this.#buffer = undefined;
    if (chunk.done) this.#handler.finished(chunk.cookie);
  }

  #parseHeader(available: number): boolean {
    if (available < SIMPLE_HEADER) return false;
    const magic = this.#view.getUint32(this.#start);
    if (magic === STRUCTURED_REPLY_MAGIC && this.#protocol === "structured") {
      if (available < STRUCTURED_HEADER) return false;
      this.#structured();
    } else if (magic === SIMPLE_REPLY_MAGIC && this.#protocol !== "extended") {
      this.#simple();
    } else if (magic === EXTENDED_REPLY_MAGIC && this.#protocol === "extended") {
      if (available < EXTENDED_HEADER) return false;
      this.#extended();
    } else {
      throw new ProtocolError(
        `the server sent 0x${magic.toString(16).padStart(8, "0")} where a ${this.#protocol} reply was due`,
      );
    }
    return true;
  }

  /**
   * | at | bytes | |
   * |---|---|---|
   * | 0 | 4 | magic 0x67446698 |
   * | 4 | 4 | error number, 0 for success |
   * | 8 | 8 | cookie |
   * | 16 | the request's length | payload, of a successful read only |
   */
  #simple(): void {
    const error = this.#view.getUint32(this.#start + 4);
    const cookie = readUint64(this.#view, this.#start + 8, "a cookie");
    this.#start += SIMPLE_HEADER;
    const sink = this.#handler.find(cookie);
    if (sink === undefined) throw new ProtocolError("the server sent a second reply to the same request");
    const isRead = sink.command === COMMAND.READ;
    if (isRead && this.#protocol !== "simple") {
      throw new ProtocolError(
        "the server sent a simple reply to a read although structured ones were agreed on",
      );
    }
    if (error !== 0) sink.fail(error, "");
    const length = isRead && error === 0 ? sink.length : 0;
    this.#offset = sink.offset;
    const chunk: Chunk = { type: CHUNK.OFFSET_DATA, done: true, cookie, length, sink };
    this.#expect(chunk, length > 0 ? sink.place(sink.offset, length) : undefined, length);
  }

  /**
   * | at | bytes | |
   * |---|---|---|
   * | 0 | 4 | magic 0x668e33ef |
   * | 4 | 2 | chunk flags |
   * | 6 | 2 | chunk type |
   * | 8 | 8 | cookie |
   * | 16 | 4 | length of the payload |
   */
  #structured(): void {
    const flags = this.#view.getUint16(this.#start + 4);
    const type = this.#view.getUint16(this.#start + 6);
    const cookie = readUint64(this.#view, this.#start + 8, "a cookie");
    const length = this.#view.getUint32(this.#start + 16);
    this.#start += STRUCTURED_HEADER;
    this.#beginChunk(type, flags, cookie, length, this.#handler.find(cookie));
  }

  /**
   * | at | bytes | |
   * |---|---|---|
   * | 0 | 4 | magic 0x6e8a278c |
   * | 4 | 2 | chunk flags |
   * | 6 | 2 | chunk type |
   * | 8 | 8 | cookie |
   * | 16 | 8 | offset: the request's |
   * | 24 | 8 | length of the payload |
   */
  #extended(): void {
    const flags = this.#view.getUint16(this.#start + 4);
    const type = this.#view.getUint16(this.#start + 6);
    const cookie = readUint64(this.#view, this.#start + 8, "a cookie");
    const offset = readUint64(this.#view, this.#start + 16, "the offset of a reply");
    const length = readUint64(this.#view, this.#start + 24, "the length of a chunk");
    this.#start += EXTENDED_HEADER;
    const sink = this.#handler.find(cookie);
    if (sink !== undefined && sink.offset !== offset) {
      throw new ProtocolError(
        `the server sent a reply for offset ${offset} to a request at offset ${sink.offset}`,
      );
    }
    this.#beginChunk(type, flags, cookie, length, sink);
  }

  #beginChunk(
    type: number,
    flags: number,
    cookie: number,
    length: number,
    sink: ReplySink | undefined,
  ): void {
    const chunk: Chunk = { type, done: (flags & CHUNK_FLAG_DONE) !== 0, cookie, length, sink };
    if (sink === undefined) {
      if (length > MAX_STATUS_PAYLOAD) throw tooLong(chunk, MAX_STATUS_PAYLOAD);
      this.#expect(chunk, undefined, length);
      return;
    }
    switch (type) {
      case CHUNK.OFFSET_DATA:
        requireCommand(chunk, sink, COMMAND.READ);
        if (length <= DATA_OFFSET) throw new ProtocolError("the server sent a data chunk without data");
        if (length - DATA_OFFSET > sink.length) throw tooLong(chunk, DATA_OFFSET + sink.length);
        this.#chunk = chunk;
        return;
      case CHUNK.NONE:
        if (length !== 0 || !chunk.done) {
          throw new ProtocolError("the server sent a NONE chunk that has a payload or isn't the last one");
        }
        break;
      case CHUNK.OFFSET_HOLE:
        requireCommand(chunk, sink, COMMAND.READ);
        if (length !== 12) throw new ProtocolError(`the server sent a hole chunk of ${length} bytes`);
        break;
      case CHUNK.BLOCK_STATUS:
        checkStatusLength(chunk, sink, 4, 8);
        break;
      case CHUNK.BLOCK_STATUS_EXT:
        if (this.#protocol !== "extended") throw unknownChunk(chunk);
        checkStatusLength(chunk, sink, 8, 16);
        break;
      default:
        if ((type & CHUNK_IS_ERROR) === 0) throw unknownChunk(chunk);
        checkErrorLength(chunk);
        if (length === 0) decodeUnknownError(chunk, sink, new Uint8Array(0));
    }
    this.#expect(chunk, length > 0 ? new Uint8Array(length) : undefined, length);
  }

  /** A data chunk: 8 bytes of offset, then the data. */
  #beginData(chunk: Chunk, offset: number): void {
    const length = chunk.length - DATA_OFFSET;
    this.#offset = offset;
    this.#expect(chunk, chunk.sink?.place(offset, length), length);
  }
}
