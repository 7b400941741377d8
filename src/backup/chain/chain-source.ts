import type { PieceSink, Stretch } from "../../nbd/index.js";
import type { Geometry } from "../image/image.js";
import type { Layer } from "./layer.js";
import type { DamageOf, Piece, SeenLayer } from "./overlay.js";
import { seenThrough } from "./overlay.js";

/** Buffers that are kept for later reads. */
const MAX_SPARE = 16;

/** A piece of data that the walk has shown, and how much of it was not read yet. */
interface SeenPiece<L extends SeenLayer> {
  readonly piece: Piece<L>;
  unread: number;
}

/**
 * Reads what `seenThrough` has shown. The walk notes where data lies, and reads find it there; so a read may only
 * ask for what the walk has passed, and every byte of data is read exactly once. In which order does not matter: a
 * piece is forgotten when all of it, and all before it, was read.
 */
export class ChainSource<L extends SeenLayer = Layer> {
  readonly geometry: Geometry;
  readonly #layers: readonly L[];
  readonly #damageOf: DamageOf<L>;
  #seen: SeenPiece<L>[] = [];
  #walked = 0;
  /** Buffers that nobody uses. */
  readonly #spare: Buffer[] = [];
  /** All data before this byte was read and is forgotten. */
  #forgotten = 0;

  constructor(layers: readonly L[], geometry: Geometry, damageOf: DamageOf<L>) {
    this.#layers = layers;
    this.geometry = geometry;
    this.#damageOf = damageOf;
  }

  /** The walk over the whole disk. */
  async *extents(): AsyncGenerator<readonly Piece<L>[]> {
    for await (const piece of seenThrough(this.#layers, this.geometry.virtualSize, this.#damageOf)) {
      if (piece.state === "clean") throw new RangeError("the last layer of a chain has to be complete");
      if (piece.state === "data") this.#seen.push({ piece, unread: piece.length });
      this.#walked = piece.offset + piece.length;
      yield [piece];
    }
  }

  async read(offset: number, target: Uint8Array): Promise<void> {
    const end = offset + target.length;
    const bytes = Buffer.from(target.buffer, target.byteOffset, target.length);
    let done = offset;
    for (const piece of this.take(offset, end)) {
      if (!piece.from) continue;
      const { layer, run } = piece.from;
      const at = piece.offset - offset;
      bytes.fill(0, done - offset, at);
      await layer.read(run, piece.offset, bytes.subarray(at, at + piece.length), this.#damageOf(layer));
      done = piece.offset + piece.length;
    }
    bytes.fill(0, done - offset);
  }

  /** As `read`, into buffers that are used again, each stretch handed on in one piece. */
  async readPieces(
    stretches: readonly Stretch[],
    sink: PieceSink,
    { signal }: { readonly signal: AbortSignal },
  ): Promise<void> {
    const reads = stretches.map((stretch) => this.#readStretch(stretch, sink, signal));
    // None may still be using a layer's file once this is over.
    for (const outcome of await Promise.allSettled(reads)) {
      if (outcome.status === "rejected") throw outcome.reason;
    }
  }

  async #readStretch({ offset, length }: Stretch, sink: PieceSink, signal: AbortSignal): Promise<void> {
    const spare = this.#spare.pop();
    const buffer = spare && spare.length >= length ? spare : Buffer.allocUnsafeSlow(length);
    const bytes = buffer.subarray(0, length);
    await this.read(offset, bytes);
    signal.throwIfAborted();
    sink.data(offset, bytes);
    if (this.#spare.length < MAX_SPARE) this.#spare.push(buffer);
  }

  /** @throws {RangeError} some data was never read */
  assertAllRead(): void {
    const first = this.#seen.find(({ unread }) => unread > 0);
    if (first) throw new RangeError(`the data at byte ${first.piece.offset} was never read`);
  }

  /** The data in a range, piece by piece, for whoever reads it elsewhere: it counts as read from here on. */
  take(offset: number, end: number): Piece<L>[] {
    if (end > this.#walked) throw new RangeError(`the walk has not come to byte ${end} yet`);
    if (offset < this.#forgotten) throw new RangeError(`what is at byte ${offset} was read before`);
    const taken: Piece<L>[] = [];
    for (const seen of this.#seen) {
      const { piece } = seen;
      if (piece.offset >= end) break;
      const start = Math.max(piece.offset, offset);
      const stop = Math.min(piece.offset + piece.length, end);
      if (start >= stop) continue;
      seen.unread -= stop - start;
      if (seen.unread < 0) throw new RangeError(`the data at byte ${start} was read twice`);
      taken.push({ ...piece, offset: start, length: stop - start });
    }
    this.#forget();
    return taken;
  }

  #forget(): void {
    const count = this.#seen.findIndex(({ unread }) => unread > 0);
    const done = this.#seen.splice(0, count < 0 ? this.#seen.length : count);
    const last = done.at(-1)?.piece;
    if (last) this.#forgotten = last.offset + last.length;
  }
}
