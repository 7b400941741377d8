/**
 * A request and the state of its reply. Each chunk is checked against what was requested. A reply that
 * contradicts its request is a ProtocolError; one that reports a failure fails the request.
 */

import { Coverage } from "./coverage.js";
import { ProtocolError, quote, RequestError } from "./errors.js";
import type { PieceTaker, ReplySink, ReplyTarget } from "./wire/chunks.js";
import { COMMAND, COMMAND_FLAG, ERRNO } from "./wire/constants.js";
import type { Descriptors } from "./wire/descriptors.js";
import { commandName } from "./wire/requests.js";

/** A small read takes as long as a larger one, so a complete one is worth so many bytes of progress. */
const WORTH_OF_READ = 4096;

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

/** A request of any kind whose reply isn't complete. */
export interface OpenRequest extends ReplySink, Inquiry {
  /** The payload of a write; undefined for any other command. */
  readonly payload: Uint8Array | undefined;
  /** Given when the request is sent. */
  cookie: number;
  /** When the request was sent: the value of `Watchdog.now`. */
  sentAt: number;
  /** True once the caller has the result; the rest of the reply is skipped. */
  readonly settled: boolean;
  /** The first failure that the server has reported so far. */
  readonly failure: RequestError | undefined;
  /** Bytes of progress that a complete reply stands for, besides its own. */
  readonly worth: number;
  /** Called when the reply is complete. Throws a ProtocolError if it doesn't answer the request. */
  finish(): void;
  /** Rejects with `error` at once. */
  abandon(error: unknown): void;
}

/** Exactly one of these functions is called for each request, once. Neither throws. */
export interface Settlement<T> {
  resolve(value: T): void;
  /** @param of identifies the request, since many may share one settlement */
  reject(error: unknown, of: Stretch): void;
}

/** What all requests have in common. Each settles exactly once, whatever happens. */
export abstract class Exchange<T> implements OpenRequest {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  readonly payload: Uint8Array | undefined;
  cookie = 0;
  sentAt = 0;
  /** Gets the outcome, once. */
  settlement: Settlement<T> | undefined;
  /** True once the settlement has the outcome. */
  protected hasOutcome = false;
  #failure: RequestError | undefined;
  #failures = 0;

  constructor(command: number, flags: number, offset: number, length: number, payload?: Uint8Array) {
    this.command = command;
    this.flags = flags;
    this.offset = offset;
    this.length = length;
    this.payload = payload;
  }

  get settled(): boolean {
    return this.hasOutcome;
  }

  get failure(): RequestError | undefined {
    return this.#failure;
  }

  /** By default a reply proves that the server works, however few bytes it has. */
  get worth(): number {
    return Number.POSITIVE_INFINITY;
  }

  /** The result of a reply that reported no failure. Throws a ProtocolError if something is missing. */
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
    if (this.hasOutcome) return;
    this.hasOutcome = true;
    this.settlement?.reject(error, this);
  }

  #settle(value: T): void {
    if (this.hasOutcome) return;
    this.hasOutcome = true;
    this.settlement?.resolve(value);
  }
}

/** A read into any destination. Every byte has to arrive exactly once. */
abstract class ReadExchange extends Exchange<void> {
  /** All of the data has arrived in one chunk, as it nearly always does. */
  #cameWhole = false;
  #coverage: Coverage | undefined;
  #contentChunks = 0;

  constructor(offset: number, length: number, flags: number) {
    super(COMMAND.READ, flags, offset, length);
  }

  override get worth(): number {
    return WORTH_OF_READ;
  }

  protected override result(): void {
    if (!this.#cameWhole && this.#coverage?.complete !== true) {
      throw new ProtocolError(
        `the server sent less than the ${this.length} bytes asked for at offset ${this.offset}`,
      );
    }
  }

  /**
   * Whether to store arriving bytes. They are skipped after a failure and once the caller has its result;
   * after an abort they must not be stored.
   */
  protected get isWanted(): boolean {
    return !this.settled && this.failure === undefined;
  }

  /** @returns where the stretch begins, relative to the request */
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

/** Fills a buffer, which is lent to the connection while the reply comes in. */
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

/** Receives the bytes of a read as they arrive. */
export interface PieceSink {
  /**
   * `bytes` are the bytes of the export from `offset` on, lent until the call returns. An exception from the
   * sink fails the read; the sink gets no more bytes then.
   */
  data(offset: number, bytes: Uint8Array): void;
  /** The stretch reads as zeroes. */
  zeroes(offset: number, length: number): void;
}

/** A sink that can be closed: then bytes still to come are skipped, and waiting requests are not sent. */
export interface RevocableSink extends PieceSink {
  readonly isClosed: boolean;
}

/** Passes the bytes to a sink as they arrive. */
export class PieceExchange extends ReadExchange implements PieceTaker {
  readonly #sink: RevocableSink;
  /** Offset in the export at which the next piece begins. */
  #at = 0;

  constructor(offset: number, length: number, sink: RevocableSink, flags: number) {
    super(offset, length, flags);
    this.#sink = sink;
  }

  override get settled(): boolean {
    return this.hasOutcome || this.#sink.isClosed;
  }

  override place(offset: number, length: number): PieceTaker {
    this.cover(offset, length);
    this.#at = offset;
    return this;
  }

  /** An exception from the sink fails the read, not the connection. */
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

/** The extents in one block-status reply, by context name. Each list covers a part or all of the request. */
export type StatusReply = ReadonlyMap<string, Descriptors>;

export class StatusExchange extends Exchange<StatusReply> {
  readonly #contexts: ReadonlyMap<number, string>;
  readonly #found = new Map<string, Descriptors>();
  /** Bytes that every context so far describes. */
  #described = Number.POSITIVE_INFINITY;

  /** @param contexts the names of the negotiated contexts, by id */
  constructor(offset: number, length: number, flags: number, contexts: ReadonlyMap<number, string>) {
    super(COMMAND.BLOCK_STATUS, flags, offset, length);
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
    const described = descriptors.validate(this.length, (this.flags & COMMAND_FLAG.REQ_ONE) !== 0);
    this.#described = Math.min(this.#described, described, this.length);
    this.#found.set(name, descriptors);
  }

  /** Replies of a few bytes each may describe a disk quickly, and an extent of a sector is no progress. */
  override get worth(): number {
    return this.#found.size === 0 ? 0 : this.#described;
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

/** A command whose reply carries only success or failure. */
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
