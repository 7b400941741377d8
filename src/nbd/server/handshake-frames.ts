/**
 * Encodes and decodes the frames of the handshake. All numbers are big-endian and unsigned. Section names are
 * those of the specification (doc/proto.md).
 */
import {
  GREETING_MAGIC,
  HANDSHAKE,
  INFO,
  MAX_STRING,
  OPTION_ERROR,
  OPTION_MAGIC,
  OPTION_REPLY,
  OPTION_REPLY_MAGIC,
} from "../wire/constants.js";
import { clippedUtf8 } from "./clipped-utf8.js";
import { ClientFault, OptionRefusal } from "./errors.js";
import type { BlockSize } from "./export.js";

export const CLIENT_FLAGS_BYTES = 4;
export const OPTION_HEADER_BYTES = 16;

const SERVER_FLAGS = HANDSHAKE.FIXED_NEWSTYLE | HANDSHAKE.NO_ZEROES;

/**
 * "Newstyle negotiation", the greeting (18 bytes):
 *
 *      0  u64  "NBDMAGIC"
 *      8  u64  "IHAVEOPT"
 *     16  u16  handshake flags
 */
export function encodeGreeting(): Buffer {
  const frame = Buffer.alloc(18);
  frame.writeBigUInt64BE(GREETING_MAGIC, 0);
  frame.writeBigUInt64BE(OPTION_MAGIC, 8);
  frame.writeUInt16BE(SERVER_FLAGS, 16);
  return frame;
}

/**
 * The client's answer to the greeting: u32, a subset of the handshake flags.
 * @throws {ClientFault} for flags that were not offered: the specification requires closing the connection
 */
export function decodeClientFlags(frame: Buffer): { readonly noZeroes: boolean } {
  const flags = frame.readUInt32BE(0);
  if ((flags & ~SERVER_FLAGS) !== 0) {
    throw new ClientFault(
      "BAD_CLIENT_FLAGS",
      `the client set unknown handshake flags 0x${flags.toString(16)}`,
    );
  }
  return { noZeroes: (flags & HANDSHAKE.NO_ZEROES) !== 0 };
}

/**
 * Start of an option (16 bytes), with `length` bytes of data to follow:
 *
 *      0  u64  "IHAVEOPT"
 *      8  u32  option
 *     12  u32  length of the data
 */
export function decodeOptionHeader(frame: Buffer): { readonly option: number; readonly length: number } {
  if (frame.readBigUInt64BE(0) !== OPTION_MAGIC) {
    throw new ClientFault("BAD_MAGIC", "the client sent something that is not an option");
  }
  return { option: frame.readUInt32BE(8), length: frame.readUInt32BE(12) };
}

/**
 * "Fixed newstyle negotiation", a reply to an option (20 bytes and the payload):
 *
 *      0  u64  magic 0x0003e889045565a9
 *      8  u32  option that this replies to
 *     12  u32  type: one of OPTION_REPLY or OPTION_ERROR
 *     16  u32  length of the payload
 *     20  ...  payload; with an error, a text for humans
 */
export function encodeOptionReply(option: number, type: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(20);
  header.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(type, 12);
  header.writeUInt32BE(payload.length, 16);
  return Buffer.concat([header, payload]);
}

export function encodeOptionError(option: number, type: number, text: string): Buffer {
  return encodeOptionReply(option, type, clippedUtf8(text));
}

/** NBD_REP_SERVER: u32 length of the name, the name, then a description for humans. */
export function encodeServer(option: number, name: string, description = ""): Buffer {
  const bytes = Buffer.from(name);
  return encodeOptionReply(
    option,
    OPTION_REPLY.SERVER,
    Buffer.concat([u32(bytes.length), bytes, clippedUtf8(description)]),
  );
}

/** NBD_INFO_EXPORT: u16 0, u64 size in bytes, u16 transmission flags. */
export function encodeExportInfo(option: number, size: number, flags: number): Buffer {
  const payload = Buffer.alloc(12);
  payload.writeUInt16BE(INFO.EXPORT, 0);
  payload.writeBigUInt64BE(BigInt(size), 2);
  payload.writeUInt16BE(flags, 10);
  return encodeOptionReply(option, OPTION_REPLY.INFO, payload);
}

/** NBD_INFO_NAME and NBD_INFO_DESCRIPTION: u16 1 or 2, then the text. */
export function encodeTextInfo(option: number, kind: number, text: string): Buffer {
  return encodeOptionReply(option, OPTION_REPLY.INFO, Buffer.concat([u16(kind), clippedUtf8(text)]));
}

/** NBD_INFO_BLOCK_SIZE: u16 3, u32 minimum, u32 preferred, u32 maximum payload. */
export function encodeBlockSizeInfo(option: number, sizes: BlockSize): Buffer {
  const payload = Buffer.alloc(14);
  payload.writeUInt16BE(INFO.BLOCK_SIZE, 0);
  payload.writeUInt32BE(sizes.minimum, 2);
  payload.writeUInt32BE(sizes.preferred, 6);
  payload.writeUInt32BE(sizes.maximum, 10);
  return encodeOptionReply(option, OPTION_REPLY.INFO, payload);
}

/** NBD_REP_META_CONTEXT: u32 id (no meaning for LIST), then the context's name. */
export function encodeMetaContext(option: number, id: number, name: string): Buffer {
  return encodeOptionReply(option, OPTION_REPLY.META_CONTEXT, Buffer.concat([u32(id), Buffer.from(name)]));
}

/**
 * Reply to NBD_OPT_EXPORT_NAME: u64 size, u16 transmission flags, 124 zeroes unless both sides agreed to omit
 * them.
 */
export function encodeExportNameReply(size: number, flags: number, noZeroes: boolean): Buffer {
  const frame = Buffer.alloc(noZeroes ? 10 : 10 + 124);
  frame.writeBigUInt64BE(BigInt(size), 0);
  frame.writeUInt16BE(flags, 8);
  return frame;
}

/** Data of NBD_OPT_EXPORT_NAME: only the name. */
export function decodeExportName(data: Buffer): string {
  const fields = new Fields(data);
  return fields.string(data.length);
}

/**
 * Data of NBD_OPT_INFO and NBD_OPT_GO:
 *
 *     u32  length of the name      u16  number n of wanted infos
 *     ...  name                    n x u16  infos
 */
export function decodeInfoQuery(data: Buffer): {
  readonly exportName: string;
  readonly infos: ReadonlySet<number>;
} {
  const fields = new Fields(data);
  const exportName = fields.string(fields.u32());
  const infos = Array.from({ length: fields.u16() }, () => fields.u16());
  fields.end();
  return { exportName, infos: new Set(infos) };
}

/**
 * Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT:
 *
 *     u32  length of the name      u32  number n of queries
 *     ...  name                    n x (u32 length, query)
 */
export function decodeMetaQuery(data: Buffer): {
  readonly exportName: string;
  readonly queries: readonly string[];
} {
  const fields = new Fields(data);
  const exportName = fields.string(fields.u32());
  const queries: string[] = [];
  // The announced number must not size an array: each query has to be present first.
  for (let left = fields.u32(); left > 0; left--) queries.push(fields.string(fields.u32()));
  fields.end();
  return { exportName, queries };
}

/** Options that take no data. */
export function decodeNothing(data: Buffer): void {
  new Fields(data).end();
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Takes fields from the front of an option's data; malformed data is answered with INVALID. */
class Fields {
  readonly #data: Buffer;
  #at = 0;

  constructor(data: Buffer) {
    this.#data = data;
  }

  u16(): number {
    return this.#take(2).readUInt16BE(0);
  }

  u32(): number {
    return this.#take(4).readUInt32BE(0);
  }

  string(length: number): string {
    if (length > MAX_STRING) {
      throw new OptionRefusal(
        OPTION_ERROR.INVALID,
        `a string of ${length} bytes is longer than ${MAX_STRING}`,
      );
    }
    const bytes = this.#take(length);
    if (bytes.includes(0)) throw new OptionRefusal(OPTION_ERROR.INVALID, "a string contains NUL");
    try {
      return utf8.decode(bytes);
    } catch {
      throw new OptionRefusal(OPTION_ERROR.INVALID, "a string is not UTF-8");
    }
  }

  end(): void {
    const left = this.#data.length - this.#at;
    if (left > 0) throw new OptionRefusal(OPTION_ERROR.INVALID, `${left} bytes too many`);
  }

  #take(length: number): Buffer {
    const end = this.#at + length;
    if (end > this.#data.length) throw new OptionRefusal(OPTION_ERROR.INVALID, "the data is too short");
    const bytes = this.#data.subarray(this.#at, end);
    this.#at = end;
    return bytes;
  }
}

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}
