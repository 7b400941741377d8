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

/** Encodes requests that are sent together, one behind the other in one buffer. */
export class RequestBatch {
  readonly #isExtended: boolean;
  /** Bytes of the largest batch. */
  readonly #room: number;
  #bytes: Uint8Array | undefined;
  #view: DataView | undefined;
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
    this.#bytes ??= new Uint8Array(this.#room);
    this.#view ??= viewOf(this.#bytes);
    const view = this.#view;
    const at = this.#length;
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
    const bytes = this.#bytes?.subarray(0, this.#length) ?? new Uint8Array(0);
    this.#bytes = undefined;
    this.#view = undefined;
    this.#length = 0;
    return bytes;
  }
}

const NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(COMMAND).map(([name, number]) => [number, name.toLowerCase().replace("_", " ")]),
);

/** The name of a command for messages: `read`, `block status`. */
export function commandName(command: number): string {
  return NAMES.get(command) ?? `command ${command}`;
}
