/** One export: what a caller can do with it. */

import { aborted, onAbort } from "./abort.js";
import { blockStatus, type StatusBatch } from "./block-status.js";
import type { Connection } from "./connection.js";
import { ConnectionError, RequestError, type RequestErrorCode } from "./errors.js";
import type { PieceSink, Settlement, Stretch } from "./exchange.js";
import { type ExportInfo, type Limits, limitsOf } from "./export-info.js";
import { GuardedSink } from "./guarded-sink.js";
import { Pool } from "./pool.js";
import {
  fitsOneRequest,
  inPieces,
  isOverflow,
  readInSmallPieces,
  readRange,
  readRangePieces,
  readWhole,
} from "./range.js";
import { type ConnectOptions, resolveSettings } from "./settings.js";
import type { NbdAddress } from "./uri.js";
import { COMMAND, COMMAND_FLAG } from "./wire/constants.js";
import { commandName } from "./wire/requests.js";

export interface RequestOptions {
  /** Rejects the request with a ConnectionError, NBD_ABORTED. */
  readonly signal?: AbortSignal;
}

export interface StatusOptions extends RequestOptions {
  /** Start of the range in bytes; default 0. */
  readonly offset?: number;
  /** Default: up to the end of the export. */
  readonly length?: number;
  /** Has each reply tell of one extent only: quicker for the first, slower for all. */
  readonly onlyFirst?: boolean;
}

export interface WriteOptions extends RequestOptions {
  /** The promise settles only once the bytes are on stable storage. */
  readonly fua?: boolean;
  /** May be sent again after a lost connection; see `reconnect`. */
  readonly idempotent?: boolean;
}

export interface ZeroOptions extends WriteOptions {
  /** Asks for zeroes that occupy space. */
  readonly noHole?: boolean;
  /** Fails with ENOTSUP where zeroing would be no faster than writing. */
  readonly fastZero?: boolean;
}

/** Payload of one write; small enough for a slow link to show signs of life in time. */
const WRITE_PIECE = 1024 * 1024;

export class NbdClient implements AsyncDisposable {
  readonly export: ExportInfo;
  readonly #pool: Pool;
  readonly #limits: Limits;
  readonly #doubts: Doubts;

  private constructor(pool: Pool) {
    this.export = pool.export;
    this.#pool = pool;
    this.#limits = limitsOf(pool.export);
    this.#doubts = new Doubts(pool);
  }

  /**
   * Connects, negotiates and opens the export.
   * @param target an NBD URI or what {@link parseNbdUri} makes of one
   * @throws {NbdError} of any class but RequestError
   */
  static async connect(target: string | NbdAddress, options: ConnectOptions = {}): Promise<NbdClient> {
    return new NbdClient(await Pool.open(await resolveSettings(target, options)));
  }

  /** Live connections. */
  get connections(): number {
    return this.#pool.connections;
  }

  /**
   * Opens more connections in the background, until there are `connections` in all; nothing happens where the server
   * doesn't allow several. One that can't be opened is done without.
   */
  widen(connections: number): void {
    this.#pool.widen(connections);
  }

  /** Requests sent so far. */
  get requests(): number {
    return this.#pool.requests;
  }

  /**
   * Fills `target` with the bytes from `offset` on: any stretch inside the export, cut into requests as the
   * server's limits want it. `target` belongs to the client until the promise settles.
   *
   * Aborting while the bytes of this read are just coming in costs the connection.
   * @throws {RequestError} the server failed it, or it is out of range
   * @throws {ConnectionError} @throws {ProtocolError}
   */
  async read(offset: number, target: Uint8Array, options: RequestOptions = {}): Promise<void> {
    const { length } = target;
    this.#checkRange(COMMAND.READ, offset, length);
    if (length === 0) return;
    const { signal } = options;
    if (fitsOneRequest(this.#limits, offset, length)) return this.#readPiece(offset, target, signal);
    return readRange(this.#limits, offset, target, (at, piece) => this.#readPiece(at, piece, signal));
  }

  /**
   * Hands `sink` the bytes of all stretches while they come in, in pieces of any size and in any order; together they are
   * the stretches exactly. For whoever passes bytes on at once: nothing is copied, and no buffer has to wait for them.
   * A piece is lent to `sink` only until it returns; what it throws fails the read. Nothing comes any more once the
   * promise has settled.
   *
   * A request whose connection is lost is made again over another one where reconnecting is on, and its pieces then
   * come once more.
   * @throws {RequestError} the server failed one, or it is out of range
   * @throws {ConnectionError} @throws {ProtocolError} @throws what `sink` throws
   */
  async readPieces(
    stretches: readonly Stretch[],
    sink: PieceSink,
    options: RequestOptions = {},
  ): Promise<void> {
    const { signal } = options;
    for (const { offset, length } of stretches) this.#checkRange(COMMAND.READ, offset, length);
    if (stretches.length === 0) return;
    if (signal?.aborted) throw aborted(signal);
    const guarded = new GuardedSink(sink);
    await new Promise<void>((resolve, reject) => {
      const forget = signal && onAbort(signal, () => this.#abandon(guarded, signal, reject));
      // Many small stretches are what a fragmented disk comes to: they share one promise, one settlement, one abort.
      let open = stretches.length;
      const settlement: Settlement<void> = {
        resolve: () => {
          open -= 1;
          if (open > 0) return;
          forget?.();
          guarded.settle(resolve, reject);
        },
        reject: (reason, stretch) => {
          if (!guarded.isClosed && this.#readAgain(reason, stretch, guarded, signal, settlement)) return;
          guarded.close(reason);
          settlement.resolve();
        },
      };
      for (const stretch of stretches) this.#readStretch(stretch, guarded, signal, settlement);
    });
  }

  /** Nothing is handed on any more from here on, and connections that are being closed need not wait for it. */
  #abandon(sink: GuardedSink, signal: AbortSignal, reject: (reason: unknown) => void): void {
    sink.close(aborted(signal));
    reject(aborted(signal));
    this.#pool.noteAbandoned();
  }

  /**
   * Consecutive batches that cover the range exactly, each with all negotiated meta contexts. Requests run ahead
   * of the reader, within bounds; a reader that leaves early has those under way aborted.
   * @throws {RequestError} the server failed one, there is no context, or it is out of range
   * @throws {ConnectionError} @throws {ProtocolError}
   */
  async *blockStatus(options: StatusOptions = {}): AsyncGenerator<StatusBatch, void, void> {
    const { size, alignment, maxStatus } = this.#limits;
    const { offset = 0, onlyFirst = false, signal } = options;
    const length = options.length ?? size - offset;
    this.#checkRange(COMMAND.BLOCK_STATUS, offset, length);
    const { contexts } = this.export;
    if (contexts.length === 0) {
      throw refused("NBD_NOT_OFFERED", COMMAND.BLOCK_STATUS, offset, length, "no meta context was agreed on");
    }
    const range = { offset, length, size, alignment, maxRequest: maxStatus, contexts };
    yield* blockStatus(
      range,
      (at, count, over) =>
        this.#pool.run((connection) => connection.blockStatus(at, count, onlyFirst, over), {
          repeatable: true,
          signal: over,
        }),
      signal,
    );
  }

  /**
   * Stores `data` at `offset`; both a multiple of the export's minimum block size. `data` must stay unchanged
   * until the promise settles; after a failure some of it may have been stored.
   * @throws {RequestError} @throws {ConnectionError} @throws {ProtocolError}
   */
  async write(offset: number, data: Uint8Array, options: WriteOptions = {}): Promise<void> {
    const payload = this.export.protocol === "extended" ? COMMAND_FLAG.PAYLOAD_LEN : 0;
    const flags = this.#fua(COMMAND.WRITE, options) | payload;
    const step = Math.min(Math.max(WRITE_PIECE, this.#limits.alignment), this.#limits.maxPayload);
    return this.#change(COMMAND.WRITE, flags, offset, data.length, step, options, data);
  }

  /** Makes the stretch read as zeroes. @throws as {@link write} does */
  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    const command = COMMAND.WRITE_ZEROES;
    this.#require(this.export.canWriteZeroes, command, "the export doesn't offer it");
    let flags = this.#fua(command, options);
    if (options.noHole) flags |= COMMAND_FLAG.NO_HOLE;
    if (options.fastZero) {
      this.#require(this.export.canFastZero, command, "the export doesn't offer to do it fast or not at all");
      flags |= COMMAND_FLAG.FAST_ZERO;
    }
    return this.#change(command, flags, offset, length, this.#limits.maxEffect, options);
  }

  /** Says that the stretch's content isn't needed any more; it is undefined then. @throws as {@link write} does */
  async trim(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    this.#require(this.export.canTrim, COMMAND.TRIM, "the export doesn't offer it");
    const flags = this.#fua(COMMAND.TRIM, options);
    return this.#change(COMMAND.TRIM, flags, offset, length, this.#limits.maxEffect, options);
  }

  /** Announces that the stretch will be read soon, in whole blocks. @throws as {@link write} does */
  async cache(offset: number, length: number, options: RequestOptions = {}): Promise<void> {
    this.#require(this.export.canCache, COMMAND.CACHE, "the export doesn't offer it");
    this.#checkRange(COMMAND.CACHE, offset, length);
    if (length === 0) return;
    const { alignment, maxPayload, size } = this.#limits;
    const start = offset - (offset % alignment);
    const end = Math.min(Math.ceil((offset + length) / alignment) * alignment, size);
    return this.#effect(COMMAND.CACHE, 0, start, end - start, maxPayload, { ...options, idempotent: true });
  }

  /**
   * Brings all writes that have settled to stable storage. Where a connection was lost since the first of them, that
   * can't be had: the server may have been another one then. It fails with NBD_WRITES_IN_DOUBT, and does so until
   * something was written since: the writes have to be made again.
   * @throws as {@link write} does
   */
  async flush(options: RequestOptions = {}): Promise<void> {
    this.#require(this.export.canFlush, COMMAND.FLUSH, "the export doesn't offer it");
    const inquiry = { command: COMMAND.FLUSH, flags: 0, offset: 0, length: 0 };
    const { signal } = options;
    // What is written from here on is another flush's business.
    const upTo = this.#doubts.writes;
    this.#doubts.check(upTo);
    try {
      // Over another connection it would not speak for what went over the lost one.
      await this.#pool.run((connection) => connection.command(inquiry, undefined, signal), {
        repeatable: false,
        signal,
      });
    } catch (error) {
      if (error instanceof ConnectionError && error.code !== "NBD_ABORTED") this.#doubts.tell();
      throw error;
    }
    this.#doubts.check(upTo);
    this.#doubts.flushed(upTo);
  }

  /** Waits for what is outstanding and takes leave of the server. */
  close(): Promise<void> {
    return this.#pool.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #readPiece(offset: number, target: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    return readWhole(this.#limits, offset, target.length, (at, length) => {
      const piece = target.subarray(at - offset, at - offset + length);
      return this.#pool.run((connection) => connection.read(at, piece, signal), { repeatable: true, signal });
    });
  }

  /** By one request where that is possible, and only else with all that may be needed for it. */
  #readStretch(
    stretch: Stretch,
    sink: GuardedSink,
    signal: AbortSignal | undefined,
    settlement: Settlement<void>,
  ): void {
    if (stretch.length === 0) {
      settlement.resolve();
      return;
    }
    const connection = this.#pool.idlest;
    if (connection !== undefined && fitsOneRequest(this.#limits, stretch.offset, stretch.length)) {
      connection.readPieces(stretch, sink, settlement);
    } else this.#readWithCare(stretch, sink, signal, settlement);
  }

  /** @returns false where there is no hope in it */
  #readAgain(
    error: unknown,
    stretch: Stretch,
    sink: GuardedSink,
    signal: AbortSignal | undefined,
    settlement: Settlement<void>,
  ): boolean {
    if (this.#pool.mayRepeat(error)) this.#readWithCare(stretch, sink, signal, settlement, { spent: 1 });
    else if (isOverflow(error)) this.#readWithCare(stretch, sink, signal, settlement, { tooLarge: true });
    else return false;
    return true;
  }

  /** What fails here has failed. */
  #readWithCare(
    stretch: Stretch,
    sink: GuardedSink,
    signal: AbortSignal | undefined,
    { resolve }: Settlement<void>,
    known: Known = {},
  ): void {
    this.#readCarefully(stretch, sink, signal, known)
      .catch((reason: unknown) => sink.close(reason))
      .then(resolve);
  }

  /** In as many requests as the server's limits ask for, over whichever connections live. */
  async #readCarefully(
    { offset, length }: Stretch,
    sink: GuardedSink,
    signal: AbortSignal | undefined,
    known: Known,
  ): Promise<void> {
    const readUnfragmented = known.tooLarge === true ? readInSmallPieces : readWhole;
    await readRangePieces(this.#limits, offset, length, sink, (from, count, into) =>
      readUnfragmented(this.#limits, from, count, (at, some) => {
        sink.assertOpen();
        const piece = { offset: at, length: some };
        const read = (connection: Connection) =>
          new Promise<void>((resolve, reject) => connection.readPieces(piece, into, { resolve, reject }));
        return this.#pool.run(read, { repeatable: true, signal, spent: known.spent ?? 0 });
      }),
    );
  }

  /** A command that changes the export. */
  async #change(
    command: number,
    flags: number,
    offset: number,
    length: number,
    step: number,
    options: WriteOptions,
    data?: Uint8Array,
  ): Promise<void> {
    if (this.export.readOnly) {
      throw refused("NBD_READ_ONLY", command, offset, length, "the export is read-only");
    }
    const { losses } = this.#pool;
    await this.#effect(command, flags, offset, length, step, options, data);
    this.#doubts.written(losses, options.fua === true);
  }

  /** A command whose reply has no content, in as many requests as it takes. */
  async #effect(
    command: number,
    flags: number,
    offset: number,
    length: number,
    step: number,
    options: WriteOptions,
    data?: Uint8Array,
  ): Promise<void> {
    this.#checkRange(command, offset, length);
    const { alignment, size } = this.#limits;
    const end = offset + length;
    if (offset % alignment !== 0 || (end % alignment !== 0 && end !== size)) {
      throw refused("NBD_UNALIGNED", command, offset, length, `${alignment} bytes is the smallest unit`);
    }
    const { signal, idempotent = false } = options;
    await inPieces(offset, length, step - (step % alignment), (at, count) => {
      const inquiry = { command, flags, offset: at, length: count };
      const payload = data?.subarray(at - offset, at - offset + count);
      return this.#pool.run((connection) => connection.command(inquiry, payload, signal), {
        repeatable: idempotent,
        signal,
      });
    });
  }

  #fua(command: number, options: WriteOptions): number {
    if (options.fua !== true) return 0;
    this.#require(this.export.canFua, command, "the export doesn't offer to force it to stable storage");
    return COMMAND_FLAG.FUA;
  }

  #require(offered: boolean, command: number, reason: string): void {
    if (!offered) throw refused("NBD_NOT_OFFERED", command, 0, 0, reason);
  }

  #checkRange(command: number, offset: number, length: number): void {
    const { size } = this.#limits;
    const isSane = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
    if (isSane && offset + length <= size) return;
    throw refused("NBD_OUT_OF_RANGE", command, offset, length, `the export has ${size} bytes`);
  }
}

/** What a first attempt has shown. */
interface Known {
  /** Attempts that are spent. */
  readonly spent?: number;
  /** The server can't answer so much without fragmenting it. */
  readonly tooLarge?: boolean;
}

/** Which writes a flush can speak for: those that were acknowledged since a connection was lost last. */
class Doubts {
  readonly #pool: Pool;
  /** Writes that settled and weren't on stable storage then. */
  #writes = 0;
  /** How many of them a flush has covered since. */
  #flushed = 0;
  /** How many connections had been lost when the first of the others began. */
  #since = 0;
  /** How many had been lost when the caller was told that writes are in doubt. */
  #told: number | undefined;

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  get writes(): number {
    return this.#writes;
  }

  /** A write has settled that began after so many losses. Once the caller knows, it is up to him what he repeats. */
  written(losses: number, isStable: boolean): void {
    if (this.#told !== undefined && losses >= this.#told) {
      this.#told = undefined;
      this.#flushed = this.#writes;
    }
    if (isStable) return;
    this.#since = this.#flushed === this.#writes ? losses : Math.min(this.#since, losses);
    this.#writes += 1;
  }

  /** @throws {ConnectionError} where a connection was lost since the first `upTo` writes */
  check(upTo: number): void {
    if (upTo <= this.#flushed || this.#since === this.#pool.losses) return;
    this.tell();
    const message =
      "a connection was lost since the writes that a flush is to cover: make them again, then flush";
    throw new ConnectionError("NBD_WRITES_IN_DOUBT", message);
  }

  /** The caller learns that a flush failed, which leaves in doubt what was written before a loss. */
  tell(): void {
    if (this.#flushed < this.#writes && this.#since !== this.#pool.losses) this.#told = this.#pool.losses;
  }

  flushed(upTo: number): void {
    this.#flushed = Math.max(this.#flushed, upTo);
  }
}

function refused(
  code: RequestErrorCode,
  command: number,
  offset: number,
  length: number,
  reason: string,
): RequestError {
  const name = commandName(command);
  const message = `no ${name} at offset ${offset}, length ${length}: ${reason}`;
  return new RequestError(code, message, {
    command: name,
    offset,
    length,
    errno: code === "NBD_READ_ONLY" ? "EPERM" : code === "NBD_NOT_OFFERED" ? "ENOTSUP" : "EINVAL",
    serverText: "",
  });
}
