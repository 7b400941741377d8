/**
 * A request and what has come of its reply so far: where the meaning of each chunk is checked against what was
 * asked. A reply that contradicts its request is a ProtocolError; one that reports a failure fails the request.
 */

import { Coverage } from "./coverage.js";
import { ProtocolError, quote, RequestError } from "./errors.js";
import type { PieceTaker, ReplySink, ReplyTarget } from "./wire/chunks.js";
import { COMMAND, COMMAND_FLAG, ERRNO } from "./wire/constants.js";
import type { Descriptors } from "./wire/descriptors.js";
import { commandName } from "./wire/requests.js";

/** Error chunks accepted in one reply; a server has no reason to send more than one or two. */
const MAX_FAILURES = 64;

const ERRNO_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(ERRNO).map(([name, number]) => [number, name]),
);

export interface Inquiry {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
}

/** A request whose reply isn't complete, whatever it is to bring. */
export interface OpenRequest extends ReplySink, Inquiry {
  /** What the request carries to the server; only a write carries anything. */
  readonly payload: Uint8Array | undefined;
  /** When it was sent, as the connection counts time. */
  sentAt: number;
  /** True once the caller has its answer; what still comes for this request is skipped. */
  readonly settled: boolean;
  /** The failure that the server reported so far. */
  readonly failure: RequestError | undefined;
  /** The reply is complete. Throws a ProtocolError where it doesn't answer the request. */
  finish(): void;
  /** Gives the caller `error` at once. */
  abandon(error: unknown): void;
}

/** Exactly one of them is called for each request, once. Neither throws. */
export interface Settlement<T> {
  resolve(value: T): void;
  /** @param of the request: many may share one settlement */
  reject(error: unknown, of: Stretch): void;
}

/** What all requests have in common. Each settles exactly once, whatever happens. */
export abstract class Exchange<T> implements OpenRequest {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  readonly payload: Uint8Array | undefined;
  sentAt = 0;
  /** Who is told of the outcome, once and at once. */
  settlement: Settlement<T> | undefined;
  #settled = false;
  #failure: RequestError | undefined;
  #failures = 0;

  constructor(inquiry: Inquiry, payload?: Uint8Array) {
    this.command = inquiry.command;
    this.flags = inquiry.flags;
    this.offset = inquiry.offset;
    this.length = inquiry.length;
    this.payload = payload;
  }

  get settled(): boolean {
    return this.#settled;
  }

  get failure(): RequestError | undefined {
    return this.#failure;
  }

  /** The result of a reply that reported no failure; throws a ProtocolError where something is missing. */
  protected abstract result(): T;

  place(_offset: number, _length: number): ReplyTarget | undefined {
    throw new ProtocolError(`the server sent data in reply to a ${commandName(this.command)}`);
  }

  hole(_offset: number, _length: number): void {
    throw new ProtocolError(`the server sent a hole in reply to a ${commandName(this.command)}`);
  }

  status(_contextId: number, _descriptors: Descriptors): void {
    throw new ProtocolError(`the server sent a block status in reply to a ${commandName(this.command)}`);
  }

  fail(errorNumber: number, message: string, offset?: number, unknownType?: number): void {
    if (offset !== undefined && (offset < this.offset || offset >= this.offset + this.length)) {
      throw new ProtocolError(
        `the server sent an error at offset ${offset}, outside of the request at ${this.offset}, length ${this.length}`,
      );
    }
    this.#failures += 1;
    if (this.#failures > MAX_FAILURES) throw new ProtocolError("the server sent errors without end");
    this.#failure ??= refusal(this, errorNumber, message, unknownType);
  }

  finish(): void {
    if (this.#failure !== undefined) this.abandon(this.#failure);
    else this.#settle(this.result());
  }

  abandon(error: unknown): void {
    if (this.#settled) return;
    this.#settled = true;
    this.settlement?.reject(error, this);
  }

  #settle(value: T): void {
    if (this.#settled) return;
    this.#settled = true;
    this.settlement?.resolve(value);
  }
}

/** A read, whatever becomes of its bytes: every one of them has to come exactly once. */
abstract class ReadExchange extends Exchange<void> {
  /** All of it has come in one piece, as it nearly always does. */
  #cameWhole = false;
  #coverage: Coverage | undefined;
  #contentChunks = 0;

  constructor(offset: number, length: number, flags: number) {
    super({ command: COMMAND.READ, flags, offset, length });
  }

  protected override result(): void {
    if (!this.#cameWhole && this.#coverage?.complete !== true) {
      throw new ProtocolError(
        `the server sent less than the ${this.length} bytes asked for at offset ${this.offset}`,
      );
    }
  }

  /** Bytes that nobody will look at are not worth storing, and after an abort must not be. */
  protected get isWanted(): boolean {
    return !this.settled && this.failure === undefined;
  }

  /** @returns where in the request the stretch begins */
  protected cover(offset: number, length: number): number {
    const start = offset - this.offset;
    if (this.#contentChunks === 0 && start === 0 && length === this.length) this.#cameWhole = true;
    else this.#coverPart(start, length);
    this.#contentChunks += 1;
    if (this.#contentChunks > 1 && (this.flags & COMMAND_FLAG.DF) !== 0) {
      throw new ProtocolError("the server sent a read in fragments although that was ruled out");
    }
    return start;
  }

  #coverPart(start: number, length: number): void {
    if (this.#coverage === undefined) {
      this.#coverage = new Coverage(this.length);
      if (this.#cameWhole) this.#coverage.add(0, this.length);
    }
    this.#coverage.add(start, start + length);
  }
}

/** Fills a buffer. While the reply comes in, the buffer is lent to the connection. */
export class FillExchange extends ReadExchange {
  readonly #target: Uint8Array;

  constructor(offset: number, target: Uint8Array, flags: number) {
    super(offset, target.length, flags);
    this.#target = target;
  }

  override place(offset: number, length: number): Uint8Array | undefined {
    const start = this.cover(offset, length);
    return this.isWanted ? this.#target.subarray(start, start + length) : undefined;
  }

  override hole(offset: number, length: number): void {
    const start = this.cover(offset, length);
    if (this.isWanted) this.#target.fill(0, start, start + length);
  }
}

/** A stretch of the export; bytes. */
export interface Stretch {
  readonly offset: number;
  readonly length: number;
}

/** Takes the bytes of a read as they come. */
export interface PieceSink {
  /**
   * `bytes` are those of the export from `offset` on; they are lent until it returns. What it throws fails the read, of
   * which nothing more is handed on then.
   */
  data(offset: number, bytes: Uint8Array): void;
  /** The stretch reads as zeroes. */
  zeroes(offset: number, length: number): void;
}

/** A sink that may come to want nothing any more: what is still to come for it is skipped, or not even asked for. */
export interface RevocableSink extends PieceSink {
  readonly isClosed: boolean;
}

/** Hands the bytes to a sink while they come in. */
export class PieceExchange extends ReadExchange implements PieceTaker {
  readonly #sink: RevocableSink;
  /** Where in the export the next piece begins. */
  #at = 0;

  constructor(offset: number, length: number, sink: RevocableSink, flags: number) {
    super(offset, length, flags);
    this.#sink = sink;
  }

  override get settled(): boolean {
    return super.settled || this.#sink.isClosed;
  }

  override place(offset: number, length: number): PieceTaker {
    this.cover(offset, length);
    this.#at = offset;
    return this;
  }

  /** What the sink throws is its reader's affair, not the connection's. */
  take(piece: Uint8Array): void {
    const from = this.#at;
    this.#at += piece.length;
    if (!this.isWanted) return;
    try {
      this.#sink.data(from, piece);
    } catch (error) {
      this.abandon(error);
    }
  }

  override hole(offset: number, length: number): void {
    this.cover(offset, length);
    if (!this.isWanted) return;
    try {
      this.#sink.zeroes(offset, length);
    } catch (error) {
      this.abandon(error);
    }
  }
}

/** What one block-status reply says, by the names of the contexts. Each covers a part or all of the request. */
export type StatusReply = ReadonlyMap<string, Descriptors>;

export class StatusExchange extends Exchange<StatusReply> {
  readonly #contexts: ReadonlyMap<number, string>;
  readonly #found = new Map<string, Descriptors>();

  /** @param contexts the names of the negotiated contexts by their ids */
  constructor(offset: number, length: number, flags: number, contexts: ReadonlyMap<number, string>) {
    super({ command: COMMAND.BLOCK_STATUS, flags, offset, length });
    this.#contexts = contexts;
  }

  override status(contextId: number, descriptors: Descriptors): void {
    const name = this.#contexts.get(contextId);
    if (name === undefined) {
      throw new ProtocolError(
        `the server sent a block status of context ${contextId}, which was not agreed on`,
      );
    }
    if (this.#found.has(name)) {
      throw new ProtocolError(`the server sent a block status of context ${quote(name)} twice`);
    }
    descriptors.validate(this.length, (this.flags & COMMAND_FLAG.REQ_ONE) !== 0);
    this.#found.set(name, descriptors);
  }

  protected override result(): StatusReply {
    for (const name of this.#contexts.values()) {
      if (!this.#found.has(name)) {
        throw new ProtocolError(`the server sent a block status without context ${quote(name)}`);
      }
    }
    return this.#found;
  }
}

/** Any command whose reply says no more than whether it worked. */
export class PlainExchange extends Exchange<void> {
  protected override result(): void {}
}

function refusal(
  exchange: Inquiry,
  errorNumber: number,
  serverText: string,
  unknownType: number | undefined,
): RequestError {
  const errno = ERRNO_NAMES.get(errorNumber) ?? "EINVAL";
  const { offset, length } = exchange;
  const command = commandName(exchange.command);
  const number = ERRNO_NAMES.has(errorNumber) ? errno : `${errno} (from the unknown number ${errorNumber})`;
  const what = unknownType === undefined ? number : `an error of unknown type ${unknownType}`;
  const text = serverText === "" ? "" : `: ${quote(serverText)}`;
  return new RequestError(
    "NBD_REQUEST_FAILED",
    `the server failed a ${command} at offset ${offset}, length ${length} with ${what}${text}`,
    { command, offset, length, errno, serverText },
  );
}
