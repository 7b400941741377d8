/**
 * One connection in the transmission phase: sends requests and matches replies to them.
 *
 * A buffer passed to `read` is lent to the connection until the promise settles. Every promise settles,
 * however the connection ends, and the buffer is not written to after that.
 */

import { aborted } from "./abort.js";
import { ConnectionError, type NbdError, neverSent, ProtocolError } from "./errors.js";
import {
  type Exchange,
  FillExchange,
  type Inquiry,
  type OpenRequest,
  PieceExchange,
  PlainExchange,
  type RevocableSink,
  type Settlement,
  StatusExchange,
  type StatusReply,
  type Stretch,
} from "./exchange.js";
import { type ExportInfo, exportInfo } from "./export-info.js";
import { heeding } from "./heeding.js";
import { LateChunks } from "./late-chunks.js";
import type { Negotiated } from "./negotiate.js";
import type { Receiver, Transport } from "./socket.js";
import { type TimeLimits, Watchdog, type Watched } from "./watchdog.js";
import type { ReplySink } from "./wire/chunks.js";
import { COMMAND, COMMAND_FLAG } from "./wire/constants.js";
import { type ReplyHandler, ReplyParser } from "./wire/replies.js";
import { encodeGoodbye, encodeRequest, RequestBatch } from "./wire/requests.js";

/**
 * Most requests in flight. QEMU works on 16 of a connection at a time, and finds the others in its socket
 * without waiting for us. A server that works on one after the other has up to so many in its queue.
 */
const WINDOW = 32;
/**
 * Requests that wait leave when so few are in flight, several in one message: a message for each reply costs
 * both sides more than half a window of requests is worth (docs/performance-history.md).
 */
const REFILL = WINDOW / 2;

export class Connection implements Receiver, ReplyHandler, Watched {
  readonly export: ExportInfo;
  readonly #transport: Transport;
  readonly #parser: ReplyParser;
  readonly #contexts: ReadonlyMap<number, string>;
  readonly #watchdog: Watchdog;
  readonly #inFlight = new Map<number, OpenRequest>();
  readonly #waiting: OpenRequest[] = [];
  /** Requests in flight that leave in the next microtask, in one message. */
  readonly #batch: RequestBatch;
  /** Requests whose payload the operating system hasn't accepted yet. */
  readonly #unsent = new Set<OpenRequest>();
  /** Those of them that have a reply. Their payload is still lent, so their callers have to wait. */
  readonly #heldBack = new Set<OpenRequest>();
  /** Number of requests sent so far. Cookies are made from it, so they are never reused. */
  #sequence = 0;
  readonly #lateChunks: LateChunks;
  #ended: NbdError | undefined;
  #onLost: ((error: NbdError) => void) | undefined;
  #leaving: Promise<void> | undefined;
  #whenDrained: (() => void) | undefined;
  #whenAnswered: (() => void) | undefined;
  /** Called once no reply is outstanding. */
  readonly #whenIdle: (() => void)[] = [];

  /** @param rest bytes that arrived after the last reply of the negotiation */
  constructor(transport: Transport, negotiated: Negotiated, rest: Uint8Array, timeLimits: TimeLimits) {
    this.export = exportInfo(negotiated);
    this.#batch = new RequestBatch(negotiated.protocol, WINDOW);
    this.#transport = transport;
    this.#contexts = negotiated.contexts;
    this.#lateChunks = new LateChunks(negotiated.contexts.size);
    this.#watchdog = new Watchdog(timeLimits, this, (error) => this.destroy(error));
    this.#parser = new ReplyParser(negotiated.protocol, this);
    transport.receiver = this;
    transport.replay(rest);
  }

  /** Why the connection accepts no more requests; undefined while it does. */
  get ended(): NbdError | undefined {
    return this.#ended;
  }

  /** Calls `listener` when the connection ends for any reason but {@link close}; at once if it has ended. */
  set onLost(listener: (error: NbdError) => void) {
    this.#onLost = listener;
    if (this.#ended !== undefined) listener(this.#ended);
  }

  /** Called once, when the next reply is complete. Undefined: nobody waits for it. */
  set whenAnswered(listener: (() => void) | undefined) {
    this.#whenAnswered = listener;
  }

  /** Requests that are not answered yet. */
  get load(): number {
    return this.#inFlight.size + this.#heldBack.size + this.#waiting.length;
  }

  /** Requests sent so far, not counting NBD_CMD_DISC. */
  get requests(): number {
    return this.#sequence;
  }

  /**
   * Fills `target` from `offset` by one request. The caller checks bounds and alignment.
   *
   * An abort rejects at once, and the rest of the reply is skipped. If bytes of this read are just arriving,
   * the connection is closed: only that keeps the rest of them out of the buffer.
   */
  read(offset: number, target: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#submit(new FillExchange(offset, target, this.#readFlags), signal);
  }

  /**
   * Passes the bytes from `offset` on to `sink` as they arrive. Closing the sink cancels the request without
   * harm to the connection; call {@link noteAbandoned} afterwards.
   */
  readPieces({ offset, length }: Stretch, sink: RevocableSink, settlement: Settlement<void>): void {
    this.#parser.expectLargeReads();
    this.#begin(new PieceExchange(offset, length, sink, this.#readFlags), undefined, settlement);
  }

  /** To be called after a sink was closed: perhaps no caller waits for the remaining replies. */
  noteAbandoned(): void {
    this.#noteDrained();
  }

  /** Without DF, QEMU hangs up on a read error in mid-reply instead of reporting it. */
  get #readFlags(): number {
    return this.export.canDf ? COMMAND_FLAG.DF : 0;
  }

  /**
   * Sends one block-status request for all contexts. The reply may cover less or more than the request.
   * @param onlyFirst asks for only one extent per context
   */
  blockStatus(
    offset: number,
    length: number,
    onlyFirst: boolean,
    signal?: AbortSignal,
  ): Promise<StatusReply> {
    const flags = onlyFirst ? COMMAND_FLAG.REQ_ONE : 0;
    return this.#submit(new StatusExchange(offset, length, flags, this.#contexts), signal);
  }

  /** Sends any other command. `payload` must not change until the promise settles. */
  command(inquiry: Inquiry, payload?: Uint8Array, signal?: AbortSignal): Promise<void> {
    const { command, flags, offset, length } = inquiry;
    return this.#submit(new PlainExchange(command, flags, offset, length, payload), signal);
  }

  /** Resolves when no reply is outstanding, not even to an aborted request, or the connection has ended. */
  idle(): Promise<void> {
    if (this.load === 0) return Promise.resolve();
    return new Promise((resolve) => this.#whenIdle.push(resolve));
  }

  /**
   * Waits for the replies that callers await, sends NBD_CMD_DISC and hangs up. If replies to aborted requests
   * are still outstanding then, hangs up without NBD_CMD_DISC.
   */
  close(): Promise<void> {
    const message = `the connection to ${this.#transport.peer} is closed`;
    this.#leaving ??= this.#leave(new ConnectionError("NBD_CLOSED", message));
    return this.#leaving;
  }

  async #leave(reason: NbdError): Promise<void> {
    if (this.#ended !== undefined) return;
    this.#ended = reason;
    if (this.#isAwaited()) {
      await new Promise<void>((resolve) => {
        this.#whenDrained = resolve;
      });
    }
    this.#watchdog.stop();
    // Only replies to aborted requests remain. No caller waits for them, and NBD_CMD_DISC must not overtake
    // them.
    if (this.#inFlight.size > 0) this.destroy(reason);
    this.#sendBatch();
    await this.#transport.end(encodeGoodbye(this.export.protocol, 2 * this.#sequence));
  }

  /**
   * The server is shutting down: says goodbye, and fails unsent requests so that they can use another
   * connection.
   */
  #retire(): void {
    if (this.#ended !== undefined) return;
    const message = `the server at ${this.#transport.peer} is shutting down`;
    const reason = new ConnectionError("NBD_CLOSED_BY_SERVER", message);
    const neverSentYet = this.#waiting.splice(0);
    this.#leaving ??= this.#leave(reason);
    this.#onLost?.(reason);
    // Comes last, because their callers may retry at once, and should not do so over this connection.
    for (const exchange of neverSentYet) exchange.abandon(neverSent(reason));
  }

  /** Hangs up at once. All outstanding requests fail with `error`. */
  destroy(error: NbdError): void {
    this.#transport.destroy(error);
  }

  // Receiver

  target(): Uint8Array {
    return this.#parser.target();
  }

  received(count: number): void {
    this.#parser.received(count);
  }

  closed(error: NbdError): void {
    const isLoss = this.#ended === undefined;
    this.#ended ??= error;
    this.#watchdog.stop();
    const failed = [...this.#inFlight.values()];
    const heldBack = [...this.#heldBack];
    this.#inFlight.clear();
    this.#heldBack.clear();
    this.#unsent.clear();
    for (const exchange of heldBack) exchange.abandon(exchange.failure ?? error);
    for (const exchange of failed) exchange.abandon(error);
    for (const exchange of this.#waiting.splice(0)) exchange.abandon(neverSent(error));
    this.#noteIdle();
    this.#whenDrained?.();
    if (isLoss) this.#onLost?.(error);
  }

  /** Whether a reply to anything but block status is outstanding. */
  get isBusyWithData(): boolean {
    if (this.#heldBack.size > 0) return true;
    for (const { command } of this.#inFlight.values()) if (command !== COMMAND.BLOCK_STATUS) return true;
    return false;
  }

  // Watched

  get peer(): string {
    return this.#transport.peer;
  }

  get bytesMoved(): number {
    return this.#transport.bytesMoved;
  }

  get outstanding(): number {
    return this.#inFlight.size + this.#heldBack.size;
  }

  get oldest(): number | undefined {
    // A Map keeps insertion order, so the first entry was sent first.
    for (const exchange of this.#inFlight.values()) return exchange.sentAt;
    return undefined;
  }

  // ReplyHandler

  /** Undefined: a late chunk, which is skipped. */
  find(cookie: number): ReplySink | undefined {
    const exchange = this.#inFlight.get(cookie);
    if (exchange !== undefined) return exchange;
    if (this.#lateChunks.skip(cookie)) return undefined;
    throw new ProtocolError(`the server sent a reply with cookie ${cookie}, which no open request has`);
  }

  finished(cookie: number): void {
    const exchange = this.#inFlight.get(cookie);
    if (exchange === undefined) return;
    if (exchange.failure?.errno === "ESHUTDOWN") {
      // Comes before the caller learns of the failure, so that an immediate retry uses another connection.
      this.#inFlight.delete(cookie);
      this.#retire();
    }
    // Writes are sent in batches, so the reply to the first may arrive before the last was sent.
    if (exchange.payload !== undefined && this.#unsent.has(exchange)) this.#heldBack.add(exchange);
    else exchange.finish();
    // If the reply doesn't match the request, finish() has thrown: the request is still in flight and fails
    // with the connection.
    this.#inFlight.delete(cookie);
    if (this.#whenAnswered !== undefined && exchange.failure?.errno !== "ESHUTDOWN") this.#noteAnswered();
    this.#watchdog.answered(exchange.worth);
    if (exchange.command === COMMAND.BLOCK_STATUS) this.#lateChunks.noteFinished(cookie);
    this.#sendWaiting();
    this.#noteDrained();
  }

  /** The operating system has accepted the payload. The caller gets the buffer back once there is a reply. */
  #sent(exchange: OpenRequest): void {
    this.#unsent.delete(exchange);
    if (!this.#heldBack.delete(exchange)) return;
    exchange.finish();
    this.#watchdog.answered(0);
    this.#sendWaiting();
    this.#noteDrained();
  }

  #noteAnswered(): void {
    const listener = this.#whenAnswered;
    this.#whenAnswered = undefined;
    listener?.();
  }

  /** Whether a caller waits for a reply. */
  #isAwaited(): boolean {
    for (const exchange of this.#heldBack) if (!exchange.settled) return true;
    for (const exchange of this.#inFlight.values()) if (!exchange.settled) return true;
    return this.#waiting.some((exchange) => !exchange.settled);
  }

  #noteDrained(): void {
    this.#noteIdle();
    if (this.#whenDrained !== undefined && !this.#isAwaited()) this.#whenDrained();
  }

  #noteIdle(): void {
    if (this.#whenIdle.length === 0 || this.load > 0) return;
    for (const resolve of this.#whenIdle.splice(0)) resolve();
  }

  #submit<T>(exchange: Exchange<T>, signal: AbortSignal | undefined): Promise<T> {
    return new Promise<T>((resolve, reject) => this.#begin<T>(exchange, signal, { resolve, reject }));
  }

  #begin<T>(exchange: Exchange<T>, signal: AbortSignal | undefined, settlement: Settlement<T>): void {
    exchange.settlement = settlement;
    if (this.#ended !== undefined) exchange.abandon(neverSent(this.#ended));
    else if (signal?.aborted) exchange.abandon(aborted(signal));
    else {
      if (signal !== undefined)
        exchange.settlement = heeding(signal, exchange, settlement, () => this.#noteAborted(exchange));
      // None overtakes those that wait already: there may be room without their leaving yet.
      if (this.#waiting.length === 0 && this.#hasRoom()) this.#send(exchange);
      else this.#waiting.push(exchange);
    }
  }

  #send(exchange: OpenRequest): void {
    const isStatus = exchange.command === COMMAND.BLOCK_STATUS;
    const cookie = this.#nextCookie(isStatus);
    if (isStatus) this.#lateChunks.noteSent();
    exchange.cookie = cookie;
    exchange.sentAt = this.#watchdog.now;
    this.#inFlight.set(cookie, exchange);
    const { payload } = exchange;
    if (payload === undefined) {
      if (this.#batch.isEmpty) queueMicrotask(() => this.#sendBatch());
      else if (this.#batch.isFull) this.#sendBatch();
      this.#batch.add(exchange);
    } else {
      this.#unsent.add(exchange);
      this.#sendBatch();
      this.#transport.write(encodeRequest(this.export.protocol, exchange), payload, () =>
        this.#sent(exchange),
      );
    }
    this.#watchdog.asked();
  }

  /** Many requests in one message cost one system call, and wake the server once. */
  #sendBatch(): void {
    if (!this.#batch.isEmpty) this.#transport.write(this.#batch.take());
  }

  #hasRoom(): boolean {
    return this.#inFlight.size + this.#heldBack.size < WINDOW;
  }

  #sendWaiting(): void {
    if (this.#waiting.length === 0 || this.#inFlight.size + this.#heldBack.size > REFILL) return;
    while (this.#hasRoom()) {
      const next = this.#waiting.shift();
      if (next === undefined) return;
      if (!next.settled) this.#send(next);
      else next.abandon(new ConnectionError("NBD_ABORTED", "the reply is no longer wanted"));
    }
  }

  #nextCookie(isStatus: boolean): number {
    const cookie = 2 * this.#sequence + (isStatus ? 1 : 0);
    this.#sequence += 1;
    return cookie;
  }

  #noteAborted(exchange: OpenRequest): void {
    this.#noteDrained();
    // The caller owns the buffer from here on, so it must not be written to or sent from.
    if (this.#parser.receivingFor !== exchange && !this.#unsent.has(exchange)) return;
    const message = `the connection to ${this.#transport.peer} was given up: a request was aborted in the middle of its payload`;
    this.destroy(new ConnectionError("NBD_CONNECTION_LOST", message));
  }
}
