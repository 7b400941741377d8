/** The public client: all operations on one export. */

import { blockStatus, type StatusBatch } from "./block-status.js";
import { Changes, type RequestOptions, type WriteOptions, type ZeroOptions } from "./changes.js";
import type { PieceSink, Stretch } from "./exchange.js";
import { type BlockLimits, blockLimitsOf, type ExportInfo } from "./export-info.js";
import { MapClock } from "./map-limits.js";
import { PieceReads } from "./piece-reads.js";
import { Pool } from "./pool.js";
import { fitsOneRequest, readAgainIfLost, readRange, readWhole } from "./range.js";
import { checkRange, refused } from "./refusal.js";
import { type ConnectOptions, resolveSettings } from "./settings.js";
import type { NbdAddress } from "./uri.js";
import { COMMAND } from "./wire/constants.js";

export interface StatusOptions extends RequestOptions {
  /** Start of the range in bytes; default 0. */
  readonly offset?: number;
  /** Default: up to the end of the export. */
  readonly length?: number;
  /** Asks for one extent per reply only: faster for the first, slower for all. */
  readonly onlyFirst?: boolean;
}

export class NbdClient implements AsyncDisposable {
  readonly export: ExportInfo;
  readonly #pool: Pool;
  readonly #blockLimits: BlockLimits;
  readonly #changes: Changes;
  readonly #pieceReads: PieceReads;

  private constructor(pool: Pool) {
    this.export = pool.export;
    this.#pool = pool;
    this.#blockLimits = blockLimitsOf(pool.export);
    this.#changes = new Changes(pool);
    this.#pieceReads = new PieceReads(pool);
  }

  /**
   * Connects, negotiates and opens the export.
   * @param target an NBD URI, or the result of {@link parseNbdUri}
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
   * Opens more connections in the background, up to `connections` in all. Has no effect if the server doesn't
   * allow several. If one can't be opened, the client continues with those that it has.
   */
  widen(connections: number): void {
    this.#pool.widen(connections);
  }

  /** Whether all traffic is encrypted by TLS. */
  get isEncrypted(): boolean {
    return this.#pool.isEncrypted;
  }

  /** Requests sent so far. */
  get requests(): number {
    return this.#pool.requests;
  }

  /**
   * Fills `target` with the bytes from `offset` on. Any stretch inside the export will do: it is split into
   * requests that respect the server's limits. `target` belongs to the client until the promise settles.
   *
   * An abort while bytes of this read are just arriving closes the connection.
   * @throws {RequestError} the server failed the request, or it is out of range
   * @throws {ConnectionError} @throws {ProtocolError}
   */
  async read(offset: number, target: Uint8Array, options: RequestOptions = {}): Promise<void> {
    const { length } = target;
    checkRange(this.#blockLimits, COMMAND.READ, offset, length);
    if (length === 0) return;
    const { signal } = options;
    if (fitsOneRequest(this.#blockLimits, offset, length)) return this.#readPiece(offset, target, signal);
    return readRange(this.#blockLimits, offset, target, (at, piece) => this.#readPiece(at, piece, signal));
  }

  /**
   * Passes the bytes of all stretches to `sink` as they arrive, in pieces of any size and in any order;
   * together they are exactly the stretches. Suits callers that pass bytes on at once: nothing is copied, and
   * no buffer is held while waiting. A piece is lent to `sink` only until the call returns. An exception from
   * `sink` fails the read. No piece follows once the promise has settled.
   *
   * If reconnecting is enabled, a request on a lost connection is repeated over another one, and its pieces
   * may then arrive twice.
   * @throws {RequestError} the server failed a request, or it is out of range
   * @throws {ConnectionError} @throws {ProtocolError} @throws what `sink` throws
   */
  async readPieces(
    stretches: readonly Stretch[],
    sink: PieceSink,
    options: RequestOptions = {},
  ): Promise<void> {
    for (const { offset, length } of stretches) checkRange(this.#blockLimits, COMMAND.READ, offset, length);
    await this.#pieceReads.read(stretches, sink, options.signal);
  }

  /**
   * Yields consecutive batches that cover the range exactly, each with all negotiated meta contexts. A
   * limited number of requests run ahead of the reader; if the reader stops early, they are aborted.
   * @throws {RequestError} the server failed a request, there is no context, it is out of range, or there are
   *   more than `maxExtents`
   * @throws {ConnectionError} @throws {ProtocolError}
   */
  async *blockStatus(options: StatusOptions = {}): AsyncGenerator<StatusBatch, void, void> {
    const { size, alignment, maxStatus } = this.#blockLimits;
    const { offset = 0, onlyFirst = false, signal } = options;
    const length = options.length ?? size - offset;
    checkRange(this.#blockLimits, COMMAND.BLOCK_STATUS, offset, length);
    const { contexts } = this.export;
    if (contexts.length === 0) {
      throw refused("NBD_NOT_OFFERED", COMMAND.BLOCK_STATUS, offset, length, "no meta context was agreed on");
    }
    const { mapLimits } = this.#pool;
    const clock = new MapClock(mapLimits, () => this.#pool.isBusyWithData);
    const range = { offset, length, size, alignment, maxRequest: maxStatus, contexts, mapLimits, clock };
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
   * Stores `data` at `offset`. Offset and length must be multiples of the export's minimum block size. `data`
   * must not change until the promise settles; after a failure, some of it may have been stored.
   * @throws {RequestError} @throws {ConnectionError} @throws {ProtocolError}
   */
  write(offset: number, data: Uint8Array, options: WriteOptions = {}): Promise<void> {
    return this.#changes.write(offset, data, options);
  }

  /** Makes the stretch read as zeroes. @throws as {@link write} does */
  writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    return this.#changes.writeZeroes(offset, length, options);
  }

  /**
   * Declares that the content of the stretch is no longer needed; it is undefined afterwards.
   * @throws as {@link write} does
   */
  trim(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    return this.#changes.trim(offset, length, options);
  }

  /** Announces that the stretch will be read soon, in whole blocks. @throws as {@link write} does */
  cache(offset: number, length: number, options: RequestOptions = {}): Promise<void> {
    return this.#changes.cache(offset, length, options);
  }

  /**
   * Brings all settled writes to stable storage. If a connection was lost since the first write that no flush
   * has covered, the flush can't guarantee that: the process that took the write may have died, and a flush
   * reaches another one. It fails with NBD_WRITES_IN_DOUBT, and so does every flush until something has been
   * written again. The caller has to repeat all writes since its last successful flush: no later flush
   * notices that some are missing.
   * @throws as {@link write} does
   */
  flush(options: RequestOptions = {}): Promise<void> {
    return this.#changes.flush(options);
  }

  /**
   * Makes no new connection from now on. Requests that wait for a lost one fail with NBD_CLOSED; the living
   * connections go on. A handshake that has begun goes on as well, for at most `withinMs` milliseconds: a
   * server may be unable to end an export before it is over. {@link idle} waits for it.
   */
  stopConnecting(withinMs: number): void {
    this.#pool.stopConnecting(withinMs);
  }

  /**
   * Waits until no reply is outstanding, not even to an aborted request, and no connection is being made. The
   * connections stay open. A server may be unable to end an export while replies to its clients are on their
   * way.
   */
  idle(): Promise<void> {
    return this.#pool.idle();
  }

  /**
   * Waits for outstanding replies, then disconnects from the server. A handshake that has begun is waited for,
   * too, for at most two seconds: not every server survives that its client leaves in it.
   */
  close(): Promise<void> {
    return this.#pool.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #readPiece(offset: number, target: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    const pool = this.#pool;
    const once = (at: number, length: number): Promise<void> => {
      const piece = target.subarray(at - offset, at - offset + length);
      return pool.run((connection) => connection.read(at, piece, signal), { repeatable: false, signal });
    };
    return readWhole(this.#blockLimits, offset, target.length, (at, length) =>
      readAgainIfLost(this.#blockLimits, { offset: at, length }, once, (error, spent) =>
        pool.mayRepeat(error, spent),
      ),
    );
  }
}
