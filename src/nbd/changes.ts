/**
 * The commands of an export other than reading and block status: write, write zeroes, trim, cache and flush.
 */

import { ConnectionError } from "./errors.js";
import { type BlockLimits, blockLimitsOf, type ExportInfo } from "./export-info.js";
import { FlushDoubts } from "./flush-doubts.js";
import type { Pool } from "./pool.js";
import { inPieces } from "./range.js";
import { checkRange, refused } from "./refusal.js";
import { COMMAND, COMMAND_FLAG } from "./wire/constants.js";

export interface RequestOptions {
  /** Rejects the request with a ConnectionError, NBD_ABORTED. */
  readonly signal?: AbortSignal;
}

export interface WriteOptions extends RequestOptions {
  /** The promise settles only once the bytes are on stable storage. */
  readonly fua?: boolean;
  /** Allows the request to be sent again after a lost connection; see `reconnect`. */
  readonly idempotent?: boolean;
}

export interface ZeroOptions extends WriteOptions {
  /** Requests zeroes that occupy space. */
  readonly noHole?: boolean;
  /** Fails with ENOTSUP if zeroing would be no faster than writing. */
  readonly fastZero?: boolean;
}

/** A command whose reply has no content, for a stretch of any length. */
interface Effect {
  readonly command: number;
  readonly flags: number;
  /** In bytes. */
  readonly offset: number;
  readonly length: number;
  /** Most bytes of one request. */
  readonly step: number;
  /** Of a write, as long as the stretch. */
  readonly data?: Uint8Array;
}

/** Largest payload of one write, in bytes: small enough to avoid time-outs on a slow link. */
const WRITE_PIECE = 1024 * 1024;

export class Changes {
  readonly #export: ExportInfo;
  readonly #pool: Pool;
  readonly #blockLimits: BlockLimits;
  readonly #doubts: FlushDoubts;

  constructor(pool: Pool) {
    this.#export = pool.export;
    this.#pool = pool;
    this.#blockLimits = blockLimitsOf(pool.export);
    this.#doubts = new FlushDoubts(pool);
  }

  /**
   * Stores `data` at `offset`. Offset and length must be multiples of the export's minimum block size. `data`
   * must not change until the promise settles; after a failure, some of it may have been stored.
   * @throws {RequestError} @throws {ConnectionError} @throws {ProtocolError}
   */
  async write(offset: number, data: Uint8Array, options: WriteOptions = {}): Promise<void> {
    const payload = this.#export.protocol === "extended" ? COMMAND_FLAG.PAYLOAD_LEN : 0;
    const flags = this.#fua(COMMAND.WRITE, options) | payload;
    const step = Math.min(Math.max(WRITE_PIECE, this.#blockLimits.alignment), this.#blockLimits.maxPayload);
    return this.#change({ command: COMMAND.WRITE, flags, offset, length: data.length, step, data }, options);
  }

  /** Makes the stretch read as zeroes. @throws as {@link write} does */
  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    const command = COMMAND.WRITE_ZEROES;
    this.#require(this.#export.canWriteZeroes, command, "the export doesn't offer it");
    let flags = this.#fua(command, options);
    if (options.noHole) flags |= COMMAND_FLAG.NO_HOLE;
    if (options.fastZero) {
      this.#require(
        this.#export.canFastZero,
        command,
        "the export doesn't offer to do it fast or not at all",
      );
      flags |= COMMAND_FLAG.FAST_ZERO;
    }
    return this.#change({ command, flags, offset, length, step: this.#blockLimits.maxEffect }, options);
  }

  /**
   * Declares that the content of the stretch is no longer needed; it is undefined afterwards.
   * @throws as {@link write} does
   */
  async trim(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    this.#require(this.#export.canTrim, COMMAND.TRIM, "the export doesn't offer it");
    const flags = this.#fua(COMMAND.TRIM, options);
    const step = this.#blockLimits.maxEffect;
    return this.#change({ command: COMMAND.TRIM, flags, offset, length, step }, options);
  }

  /** Announces that the stretch will be read soon, in whole blocks. @throws as {@link write} does */
  async cache(offset: number, length: number, options: RequestOptions = {}): Promise<void> {
    this.#require(this.#export.canCache, COMMAND.CACHE, "the export doesn't offer it");
    checkRange(this.#blockLimits, COMMAND.CACHE, offset, length);
    if (length === 0) return;
    const { alignment, maxPayload, size } = this.#blockLimits;
    const start = offset - (offset % alignment);
    const end = Math.min(Math.ceil((offset + length) / alignment) * alignment, size);
    const effect = { command: COMMAND.CACHE, flags: 0, offset: start, length: end - start, step: maxPayload };
    return this.#effect(effect, { ...options, idempotent: true });
  }

  /**
   * Brings all settled writes to stable storage. If a connection was lost since the first write that no flush
   * has covered, the flush can't guarantee that: the process that took the write may have died, and a flush
   * reaches another one. It fails with NBD_WRITES_IN_DOUBT, and so does every flush until something has been
   * written again. The caller has to repeat all writes since its last successful flush: no later flush
   * notices that some are missing.
   * @throws as {@link write} does
   */
  async flush(options: RequestOptions = {}): Promise<void> {
    this.#require(this.#export.canFlush, COMMAND.FLUSH, "the export doesn't offer it");
    const inquiry = { command: COMMAND.FLUSH, flags: 0, offset: 0, length: 0 };
    const { signal } = options;
    // Writes that settle from here on are left to the next flush.
    const upTo = this.#doubts.writes;
    this.#doubts.check(upTo);
    try {
      // Over another connection, it would not cover the writes that went over the lost one.
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

  /** A command that changes the export. */
  async #change(effect: Effect, options: WriteOptions): Promise<void> {
    if (this.#export.readOnly) {
      const { command, offset, length } = effect;
      throw refused("NBD_READ_ONLY", command, offset, length, "the export is read-only");
    }
    const { losses } = this.#pool;
    await this.#effect(effect, options);
    this.#doubts.written(losses, options.fua === true);
  }

  /** Sends a command whose reply has no content, split into as many requests as needed. */
  async #effect(
    { command, flags, offset, length, step, data }: Effect,
    { signal, idempotent = false }: WriteOptions,
  ): Promise<void> {
    checkRange(this.#blockLimits, command, offset, length);
    const { alignment, size } = this.#blockLimits;
    const end = offset + length;
    if (offset % alignment !== 0 || (end % alignment !== 0 && end !== size)) {
      throw refused("NBD_UNALIGNED", command, offset, length, `${alignment} bytes is the smallest unit`);
    }
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
    this.#require(this.#export.canFua, command, "the export doesn't offer to force it to stable storage");
    return COMMAND_FLAG.FUA;
  }

  #require(offered: boolean, command: number, reason: string): void {
    if (!offered) throw refused("NBD_NOT_OFFERED", command, 0, 0, reason);
  }
}
