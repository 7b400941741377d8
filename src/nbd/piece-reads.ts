/** Reads whose bytes are passed on as they arrive. */

import { aborted, onAbort } from "./abort.js";
import type { Connection } from "./connection.js";
import type { PieceSink, Settlement, Stretch } from "./exchange.js";
import { type BlockLimits, blockLimitsOf } from "./export-info.js";
import { GuardedSink } from "./guarded-sink.js";
import type { Pool } from "./pool.js";
import {
  fitsOneRequest,
  isOverflow,
  readAgainIfLost,
  readInSmallPieces,
  readRangePieces,
  readWhole,
  repeatRead,
} from "./range.js";

/** What the first attempt has shown. */
interface Known {
  /** The connection was lost. */
  readonly isLost?: boolean;
  /** The server can't return that much unfragmented. */
  readonly tooLarge?: boolean;
}

export class PieceReads {
  readonly #pool: Pool;
  readonly #blockLimits: BlockLimits;

  constructor(pool: Pool) {
    this.#pool = pool;
    this.#blockLimits = blockLimitsOf(pool.export);
  }

  /** See `NbdClient.readPieces`; all stretches are inside the export. */
  async read(stretches: readonly Stretch[], sink: PieceSink, signal: AbortSignal | undefined): Promise<void> {
    if (stretches.length === 0) return;
    if (signal?.aborted) throw aborted(signal);
    const guarded = new GuardedSink(sink);
    await new Promise<void>((resolve, reject) => {
      const forget = signal && onAbort(signal, () => this.#abandon(guarded, signal, reject));
      // A fragmented disk has many small stretches: they share one promise, one settlement and one abort
      // listener.
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

  /** Passes on no more bytes, and lets closing connections stop waiting for them. */
  #abandon(sink: GuardedSink, signal: AbortSignal, reject: (reason: unknown) => void): void {
    sink.close(aborted(signal));
    reject(aborted(signal));
    this.#pool.noteAbandoned();
  }

  /** Reads by one request if possible; otherwise takes the slower path. */
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
    if (connection !== undefined && fitsOneRequest(this.#blockLimits, stretch.offset, stretch.length)) {
      connection.readPieces(stretch, sink, settlement);
    } else this.#readWithCare(stretch, sink, signal, settlement);
  }

  /** @returns false if repeating can't help */
  #readAgain(
    error: unknown,
    stretch: Stretch,
    sink: GuardedSink,
    signal: AbortSignal | undefined,
    settlement: Settlement<void>,
  ): boolean {
    if (this.#pool.mayRepeat(error, 0))
      this.#readWithCare(stretch, sink, signal, settlement, { isLost: true });
    else if (isOverflow(error)) this.#readWithCare(stretch, sink, signal, settlement, { tooLarge: true });
    else return false;
    return true;
  }

  /** A failure on this path is final. */
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

  /** Splits the stretch into requests that respect the server's limits, over any live connections. */
  async #readCarefully(
    { offset, length }: Stretch,
    sink: GuardedSink,
    signal: AbortSignal | undefined,
    known: Known,
  ): Promise<void> {
    const limits = this.#blockLimits;
    const mayRepeat = (error: unknown, spent: number): boolean => this.#pool.mayRepeat(error, spent);
    const readUnfragmented = known.tooLarge === true ? readInSmallPieces : readWhole;
    await readRangePieces(limits, offset, length, sink, (from, count, into) => {
      const once = (at: number, some: number): Promise<void> => {
        sink.assertOpen();
        const piece = { offset: at, length: some };
        const read = (connection: Connection) =>
          new Promise<void>((resolve, reject) => connection.readPieces(piece, into, { resolve, reject }));
        return this.#pool.run(read, { repeatable: false, signal });
      };
      return readUnfragmented(limits, from, count, (at, some) => {
        const piece = { offset: at, length: some };
        return known.isLost === true
          ? repeatRead(limits, piece, once, mayRepeat, 1)
          : readAgainIfLost(limits, piece, once, mayRepeat);
      });
    });
  }
}
