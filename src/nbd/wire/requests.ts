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

/** One request, encoded. See {@link RequestBatch}. */
export function encodeRequest(protocol: Protocol, request: Request): Uint8Array {
  const batch = new RequestBatch(protocol, 1);
  batch.add(request);
  return batch.take();
}

/** NBD_CMD_DISC, which has no reply. */
export function encodeGoodbye(protocol: Protocol, cookie: number): Uint8Array {
  return encodeRequest(protocol, { command: COMMAND.DISC, flags: 0, cookie, offset: 0, length: 0 });
}

/** Batches that share memory: to allocate some for each costs as much as to encode it. */
const BATCHES_OF_BLOCK = 32;

/** Encodes requests that are sent together, one behind the other in one buffer. */
export class RequestBatch {
  readonly #isExtended: boolean;
  /** Bytes of the largest batch. */
  readonly #room: number;
  /** Memory for several batches; the next one begins at #start. */
  #block: Uint8Array | undefined;
  #view: DataView | undefined;
  #start = 0;
  #length = 0;

  /** @param most requests of one batch */
  constructor(protocol: Protocol, most: number) {
    this.#isExtended = protocol === "extended";
    this.#room = most * (this.#isExtended ? EXTENDED_LENGTH : COMPACT_LENGTH);
  }

  get isEmpty(): boolean {
    return this.#length === 0;
  }

  get isFull(): boolean {
    return this.#length === this.#room;
  }

  /**
   * Adds a request. There must be room for it.
   *
   * | at | bytes | compact | at | bytes | extended |
   * |---|---|---|---|---|---|
   * | 0 | 4 | magic 0x25609513 | 0 | 4 | magic 0x21e41c71 |
   * | 4 | 2 | command flags | 4 | 2 | command flags |
   * | 6 | 2 | command | 6 | 2 | command |
   * | 8 | 8 | cookie | 8 | 8 | cookie |
   * | 16 | 8 | offset | 16 | 8 | offset |
   * | 24 | 4 | length | 24 | 8 | length |
   */
  add({ command, flags, cookie, offset, length }: Request): void {
    this.#view ??= this.#nextBlock();
    const view = this.#view;
    const at = this.#start + this.#length;
    view.setUint32(at, this.#isExtended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC);
    view.setUint16(at + 4, flags);
    view.setUint16(at + 6, command);
    writeUint64(view, at + 8, cookie);
    writeUint64(view, at + 16, offset);
    if (this.#isExtended) writeUint64(view, at + 24, length);
    else view.setUint32(at + 24, length);
    this.#length += this.#isExtended ? EXTENDED_LENGTH : COMPACT_LENGTH;
  }

  /** The bytes of the requests added so far, which are the caller's from here on. */
  take(): Uint8Array {
    const end = this.#start + this.#length;
    const bytes = this.#block?.subarray(this.#start, end) ?? new Uint8Array(0);
    this.#start = end;
    this.#length = 0;
    if (this.#block !== undefined && this.#block.length - end < this.#room) this.#view = undefined;
    return bytes;
  }

  #nextBlock(): DataView {
    const isFirst = this.#block === undefined;
    this.#block = new Uint8Array(isFirst ? this.#room : BATCHES_OF_BLOCK * this.#room);
    this.#start = 0;
    return viewOf(this.#block);
  }
}

const NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(COMMAND).map(([name, number]) => [number, name.toLowerCase().replace("_", " ")]),
);

/** The name of a command for messages: `read`, `block status`. */
export function commandName(command: number): string {
  return NAMES.get(command) ?? `command ${command}`;
}
