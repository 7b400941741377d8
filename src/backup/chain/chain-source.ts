import type { PieceSink, Stretch } from "../../nbd/index.js";
import type { Geometry } from "../image/image.js";
import type { Layer } from "./layer.js";
import type { DamageOf, ReadableLayer, VisibleExtent } from "./overlay.js";
import { seenBlocks } from "./overlay.js";

/** Unused buffers that are kept for later reads. */
const MAX_SPARE = 16;

/** A piece of data that the walk has passed, and how many of its bytes haven't been read. */
interface SeenPiece<L extends ReadableLayer> {
  readonly piece: VisibleExtent<L>;
  unread: number;
}

/**
 * A disk, read through its chain. The walk (`extents`) remembers where data is stored, and reads look it up.
 * So a read may only cover bytes that the walk has passed, and each byte of data must be read exactly once,
 * in any order. A piece is forgotten when it and all pieces before it have been read.
 */
export class ChainSource<L extends ReadableLayer = Layer> {
  readonly geometry: Geometry;
  readonly #layers: readonly L[];
  readonly #damageOf: DamageOf<L>;
  /** Pieces of data in guest order, from the first one that isn't read completely. */
  #seen: SeenPiece<L>[] = [];
  /** The walk has passed all bytes before this one. */
  #walked = 0;
  /** Unused buffers. */
  readonly #spare: Buffer[] = [];
  /** All data before this byte has been read and is forgotten. */
  #forgotten = 0;

  /** @param layers top first; the last one must be complete. They stay the caller's. */
  constructor(layers: readonly L[], geometry: Geometry, damageOf: DamageOf<L>) {
    this.#layers = layers;
    this.geometry = geometry;
    this.#damageOf = damageOf;
  }

  /**
   * Walks over the whole disk, in guest order without gaps. To be called once.
   * @throws {RangeError} the last layer isn't complete
   * @throws what the layers throw, and what `damageOf` makes of their damage
   */
  async *extents(): AsyncGenerator<readonly VisibleExtent<L>[]> {
    for await (const block of seenBlocks(this.#layers, this.geometry.virtualSize, this.#damageOf)) {
      for (const piece of block) {
        if (piece.state === "clean") throw new RangeError("the last layer of a chain has to be complete");
        if (piece.state === "data") this.#seen.push({ piece, unread: piece.length });
        this.#walked = piece.offset + piece.length;
      }
      yield block;
    }
  }

  /**
   * Fills `target` from guest offset `offset`. The walk must have passed the range.
   * @throws {RangeError} the walk hasn't passed the range, or some of its data was read before
   * @throws what the layers throw, and what `damageOf` makes of their damage
   */
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

  /**
   * Reads stretches at the same time and passes each to `sink` in one piece. The buffers are reused when
   * `sink` returns.
   * @throws as {@link read}, and the signal's reason
   */
  async readPieces(
    stretches: readonly Stretch[],
    sink: PieceSink,
    { signal }: { readonly signal: AbortSignal },
  ): Promise<void> {
    const reads = stretches.map((stretch) => this.#readStretch(stretch, sink, signal));
    // Wait for all reads, because the caller may close the layers' files after this.
    for (const outcome of await Promise.allSettled(reads)) {
      if (outcome.status === "rejected") throw outcome.reason;
    }
  }

  async #readStretch({ offset, length }: Stretch, sink: PieceSink, signal: AbortSignal): Promise<void> {
    const buffer = this.#bufferFor(length);
    const bytes = buffer.subarray(0, length);
    await this.read(offset, bytes);
    signal.throwIfAborted();
    sink.data(offset, bytes);
    if (this.#spare.length < MAX_SPARE) this.#spare.push(buffer);
  }

  /**
   * The smallest unused buffer that is large enough. New ones have few sizes, so that they fit other reads
   * later.
   */
  #bufferFor(length: number): Buffer {
    const fitting = this.#spare.filter((buffer) => buffer.length >= length);
    const [first] = fitting.toSorted((a, b) => a.length - b.length);
    if (!first) return Buffer.allocUnsafeSlow(2 ** Math.ceil(Math.log2(Math.max(1, length))));
    this.#spare.splice(this.#spare.indexOf(first), 1);
    return first;
  }

  /** @throws {RangeError} some data that the walk has passed was never read */
  assertAllRead(): void {
    const first = this.#seen.find(({ unread }) => unread > 0);
    if (first) throw new RangeError(`the data at byte ${first.piece.offset} was never read`);
  }

  /**
   * The data in a range, piece by piece, for callers that read it themselves. It counts as read from here on.
   * @param end the first byte after the range
   * @throws {RangeError} the walk hasn't passed the range, or some of its data was read before
   */
  take(offset: number, end: number): VisibleExtent<L>[] {
    if (end > this.#walked) throw new RangeError(`byte ${end} is beyond what the walk has reached`);
    if (offset < this.#forgotten) throw new RangeError(`byte ${offset} was read before`);
    const taken: VisibleExtent<L>[] = [];
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
