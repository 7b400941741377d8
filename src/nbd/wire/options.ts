/**
 * The messages of the handshake: greeting, option requests, option replies and their payloads. Encodes and
 * decodes them; negotiate.ts controls their order. Section "Handshake phase" of the specification.
 */

import { ProtocolError } from "../errors.js";
import { concatBytes, decodeText, encodeName, readUint64, viewOf } from "./bytes.js";
import {
  GREETING_MAGIC,
  INFO,
  MAX_STRING,
  OLDSTYLE_MAGIC,
  OPTION,
  OPTION_ERROR,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
} from "./constants.js";

export const GREETING_LENGTH = 18;
export const OPTION_REPLY_LENGTH = 20;
/** Largest payload of an option reply: two strings, and some slack for infos not yet defined; bytes. */
const MAX_OPTION_REPLY = 64 * 1024;

/** Set in the type of every error reply. */
export const OPTION_IS_ERROR = 0x80000000;

/**
 * Reads the greeting and returns the handshake flags.
 *
 * | at | bytes | |
 * |---|---|---|
 * | 0 | 8 | magic "NBDMAGIC" |
 * | 8 | 8 | magic "IHAVEOPT" |
 * | 16 | 2 | handshake flags |
 */
export function decodeGreeting(bytes: Uint8Array): number {
  const view = viewOf(bytes);
  if (view.getBigUint64(0) !== GREETING_MAGIC) {
    throw new ProtocolError("what answered is not an NBD server: its greeting is not NBD's", "NBD_NOT_NBD");
  }
  const style = view.getBigUint64(8);
  if (style === OLDSTYLE_MAGIC) {
    throw new ProtocolError(
      "the server speaks the oldstyle protocol, which is not supported: start it with a named export",
      "NBD_NOT_NBD",
    );
  }
  if (style !== OPTION_MAGIC) {
    throw new ProtocolError("the server sent a greeting of no known style", "NBD_NOT_NBD");
  }
  return view.getUint16(16);
}

/** The client's answer to the greeting: its flags, 4 bytes. */
export function encodeClientFlags(flags: number): Uint8Array {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, flags);
  return bytes;
}

/**
 * | at | bytes | |
 * |---|---|---|
 * | 0 | 8 | magic "IHAVEOPT" |
 * | 8 | 4 | option |
 * | 12 | 4 | length of the data |
 * | 16 | length | data |
 */
export function encodeOption(option: number, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  const header = new Uint8Array(16);
  const view = viewOf(header);
  view.setBigUint64(0, OPTION_MAGIC);
  view.setUint32(8, option);
  view.setUint32(12, data.length);
  return concatBytes(header, data);
}

/** A string as options carry it: 4 bytes of length, then the bytes. */
function encodeString(text: string, what: string): Uint8Array {
  const bytes = encodeName(text, what);
  const length = new Uint8Array(4);
  viewOf(length).setUint32(0, bytes.length);
  return concatBytes(length, bytes);
}

/** Data of EXPORT_NAME: only the name. */
export function encodeExportName(exportName: string): Uint8Array {
  return encodeName(exportName, "an export name");
}

/** Data of GO and INFO: the name as a string, a 16-bit count, and that many 16-bit kinds of information. */
export function encodeGo(exportName: string, infos: readonly number[]): Uint8Array {
  const wanted = new Uint8Array(2 + 2 * infos.length);
  const view = viewOf(wanted);
  view.setUint16(0, infos.length);
  infos.forEach((info, index) => {
    view.setUint16(2 + 2 * index, info);
  });
  return concatBytes(encodeString(exportName, "an export name"), wanted);
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT: the name, a 32-bit count, and that many strings. */
export function encodeMetaQueries(exportName: string, queries: readonly string[]): Uint8Array {
  const count = new Uint8Array(4);
  viewOf(count).setUint32(0, queries.length);
  const strings = queries.map((query) => encodeString(query, "a meta context's name"));
  return concatBytes(encodeString(exportName, "an export name"), count, ...strings);
}

interface OptionReplyHeader {
  readonly type: number;
  /** Bytes of payload to follow; checked against {@link MAX_OPTION_REPLY}. */
  readonly length: number;
}

/**
 * | at | bytes | |
 * |---|---|---|
 * | 0 | 8 | magic 0x3e889045565a9 |
 * | 8 | 4 | the option that is answered |
 * | 12 | 4 | type of the reply |
 * | 16 | 4 | length of the payload |
 */
export function decodeOptionReply(bytes: Uint8Array, option: number): OptionReplyHeader {
  const view = viewOf(bytes);
  if (view.getBigUint64(0) !== OPTION_REPLY_MAGIC) {
    throw new ProtocolError(`the server sent no option reply where one to ${optionName(option)} was due`);
  }
  const answered = view.getUint32(8);
  if (answered !== option) {
    throw new ProtocolError(
      `the server sent a reply to option ${answered} where one to ${optionName(option)} was due`,
    );
  }
  const length = view.getUint32(16);
  if (length > MAX_OPTION_REPLY) {
    throw new ProtocolError(
      `the server sent a reply to ${optionName(option)} with ${length} bytes, more than ${MAX_OPTION_REPLY}`,
    );
  }
  return { type: view.getUint32(12), length };
}

export interface ListedExport {
  readonly name: string;
  readonly description?: string;
}

/** Payload of a SERVER reply: the name as a string, then a description. */
export function decodeServer(payload: Uint8Array): ListedExport {
  const view = viewOf(payload);
  const end = payload.length >= 4 ? 4 + view.getUint32(0) : Number.POSITIVE_INFINITY;
  if (end > payload.length || end > 4 + MAX_STRING) {
    throw new ProtocolError("the server sent an export name that is longer than the reply it comes in");
  }
  const name = decodeText(payload.subarray(4, end));
  return end === payload.length ? { name } : { name, description: decodeText(payload.subarray(end)) };
}

interface MetaContext {
  /** The id that replies use in place of the name; opaque. */
  readonly id: number;
  readonly name: string;
}

/** Payload of a META_CONTEXT reply: a 32-bit id, then the name. */
export function decodeMetaContext(payload: Uint8Array): MetaContext {
  if (payload.length < 5 || payload.length > 4 + MAX_STRING) {
    throw new ProtocolError(`the server sent a meta context in ${payload.length} bytes`);
  }
  return { id: viewOf(payload).getUint32(0), name: decodeText(payload.subarray(4)) };
}

/** Block sizes in bytes that requests must respect. */
export interface BlockSize {
  /** A power of two up to 65,536; offsets and lengths are multiples of it. */
  readonly minimum: number;
  readonly preferred: number;
  /** The largest payload of one request. */
  readonly maximum: number;
}

/** Content of an INFO reply. */
type ExportFact =
  | { readonly kind: "export"; readonly size: number; readonly flags: number }
  | { readonly kind: "name"; readonly name: string }
  | { readonly kind: "description"; readonly description: string }
  | { readonly kind: "blockSize"; readonly blockSize: BlockSize }
  | { readonly kind: "unknown" };

/**
 * Payload of an INFO reply: a 16-bit kind, and then
 *
 * | kind | bytes | |
 * |---|---|---|
 * | EXPORT 0 | 10 | 64-bit size, 16-bit transmission flags |
 * | NAME 1 | any | the canonical name |
 * | DESCRIPTION 2 | any | text |
 * | BLOCK_SIZE 3 | 12 | 32-bit minimum, preferred, maximum |
 */
export function decodeInfo(payload: Uint8Array): ExportFact {
  if (payload.length < 2) throw new ProtocolError("the server sent an INFO reply without a kind");
  const body = payload.subarray(2);
  switch (viewOf(payload).getUint16(0)) {
    case INFO.EXPORT:
      expectLength(body, 10, "INFO_EXPORT");
      return { kind: "export", ...decodeExport(body) };
    case INFO.NAME:
      return { kind: "name", name: decodeText(body) };
    case INFO.DESCRIPTION:
      return { kind: "description", description: decodeText(body) };
    case INFO.BLOCK_SIZE:
      expectLength(body, 12, "INFO_BLOCK_SIZE");
      return { kind: "blockSize", blockSize: decodeBlockSize(body) };
    default:
      return { kind: "unknown" };
  }
}

/** Length of the reply to EXPORT_NAME, and of the zeroes after it unless NO_ZEROES was negotiated. */
export const EXPORT_NAME_REPLY = { LENGTH: 10, ZEROES: 124 } as const;

/** 64-bit size, 16-bit transmission flags: in INFO_EXPORT, and the whole reply to EXPORT_NAME. */
export function decodeExport(bytes: Uint8Array): { size: number; flags: number } {
  const view = viewOf(bytes);
  return { size: readUint64(view, 0, "the export's size"), flags: view.getUint16(8) };
}

function decodeBlockSize(bytes: Uint8Array): BlockSize {
  const view = viewOf(bytes);
  const minimum = view.getUint32(0);
  const preferred = view.getUint32(4);
  const maximum = view.getUint32(8);
  const powerOfTwo = minimum !== 0 && (minimum & (minimum - 1)) === 0;
  if (!powerOfTwo || minimum > 65_536 || preferred < Math.max(minimum, 512) || maximum < preferred) {
    throw new ProtocolError(
      `the server sent block sizes that make no sense: minimum ${minimum}, preferred ${preferred}, maximum ${maximum}`,
    );
  }
  return { minimum, preferred, maximum };
}

function expectLength(body: Uint8Array, length: number, what: string): void {
  if (body.length !== length) {
    throw new ProtocolError(`the server sent ${what} with ${body.length} bytes instead of ${length}`);
  }
}

/** The specification's name of an option, for messages. */
export function optionName(option: number): string {
  return nameIn(OPTION, option);
}

/** The specification's name of an option error, for messages. */
export function optionErrorName(type: number): string {
  return nameIn(OPTION_ERROR, type);
}

function nameIn(table: Readonly<Record<string, number>>, value: number): string {
  return Object.entries(table).find(([, number]) => number === value)?.[0] ?? `${value}`;
}
