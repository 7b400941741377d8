import type { LimitFunction } from "p-limit";
import type { OnDamage } from "../base/damage.js";
import type { ExtentState } from "../base/extent.js";
import { READ_BYTES } from "../digest/digest-file.js";
import { maskStretches } from "../image/image.js";
import type { LayerRun } from "./agreed-runs.js";
import type { Layer } from "./layer.js";

/** What an overlay needs of a layer. It can also be a single image that belongs to no point. */
type SeenLayer = Pick<Layer, "geometry" | "complete"> &
  (Pick<Layer, "runs"> | { runBlocks(onDamage: OnDamage): AsyncIterable<readonly LayerRun[]> });
/** A layer whose data can be read too. */
export type ReadableLayer = SeenLayer & Pick<Layer, "read">;

/** A stretch of the disk in one state. Offset and length are bytes. */
export interface VisibleExtent<L extends SeenLayer = Layer> {
  readonly offset: number;
  readonly length: number;
  readonly state: ExtentState;
  /** Where the bytes are stored; only for data. */
  readonly from?: { readonly layer: L; readonly run: LayerRun } | undefined;
}

/**
 * The disk that a guest sees through a chain of layers. The pieces come in guest order without gaps, from
 * byte 0 to `size`. If the last layer is complete, no piece is clean.
 *
 *     top      |  data A  |   clean            | zero |  clean             |
 *     below    |  data B            |  zero    | data B         |   (ends here: zeroes follow)
 *     seen     |  data A  | data B  |  zero    | zero | data B  |   zero   |
 *
 * @param layers top first, at least one
 * @param size the virtual size that is shown, in bytes
 * @param onDamage makes the listener for the damage of a layer
 */
export async function* seenThrough<L extends SeenLayer>(
  layers: readonly L[],
  size: number,
  onDamage: DamageOf<L>,
): AsyncGenerator<VisibleExtent<L>> {
  for await (const block of seenBlocks(layers, size, onDamage)) yield* block;
}

/** How layers are read before what they show is asked for. */
interface ReadingAhead {
  /** Begins each read. No read waits for another one, so others may share it. */
  readonly limit: LimitFunction;
  /**
   * Bytes of memory, besides the block of each layer that any walk holds. Where the layers may need more, only
   * the first read of each is ahead.
   */
  readonly mostBytes: number;
}

/**
 * Like {@link seenThrough}, many pieces together: all that are known without reading more, up to 256.
 * @param options.ahead all layers are read side by side, and each a little ahead, also past damage that is
 *   told later: for listeners that throw. Default: each is read when it is come to
 */
export function seenBlocks<L extends SeenLayer>(
  layers: readonly L[],
  size: number,
  onDamage: DamageOf<L>,
  { ahead }: { readonly ahead?: ReadingAhead } = {},
): AsyncGenerator<readonly VisibleExtent<L>[]> {
  const goesOn = ahead !== undefined && layers.length * READ_BYTES <= ahead.mostBytes;
  const limit = goesOn ? ahead.limit : undefined;
  const cursors = layers.map((layer) => new PieceCursor(layer, size, onDamage(layer), limit));
  return ahead ? settledAfter(visible(cursors, size), cursors, ahead.limit) : visible(cursors, size);
}

/** Nothing is being read of the layers when it has ended, however it ends. */
async function* settledAfter<T, L extends SeenLayer>(
  blocks: AsyncIterable<T>,
  layers: readonly PieceCursor<L>[],
  limit: LimitFunction,
): AsyncGenerator<T> {
  try {
    for (const layer of layers) layer.readAhead(limit);
    yield* blocks;
  } finally {
    await Promise.all(layers.map((layer) => layer.settled()));
  }
}

const MOST_IN_BLOCK = 256;

/** Makes the listener for the damage of a layer. */
export type DamageOf<L extends SeenLayer = Layer> = (layer: L) => OnDamage;

/**
 * Lays layers over each other: where all above are clean, the next one shows. All side by side, not one over
 * the other: else each piece of a long chain's full image would pass through all layers above it.
 */
async function* visible<L extends SeenLayer>(
  layers: readonly PieceCursor<L>[],
  size: number,
): AsyncGenerator<readonly VisibleExtent<L>[]> {
  let block: VisibleExtent<L>[] = [];
  for (let offset = 0; offset < size; ) {
    let end = size;
    let seen: VisibleExtent<L> | undefined;
    for (const layer of layers) {
      while (!layer.moveTo(offset)) {
        if (block.length > 0) yield block;
        block = [];
        await layer.more();
      }
      seen = layer.piece;
      end = Math.min(end, layer.end);
      if (seen.state !== "clean") break;
    }
    if (!seen) throw new RangeError("a chain has at least one layer");
    block.push({ offset, length: end - offset, state: seen.state, from: seen.from });
    offset = end;
    if (block.length < MOST_IN_BLOCK) continue;
    yield block;
    block = [];
  }
  if (block.length > 0) yield block;
  // A layer compares the SHA-256 of its digest file at its end, so each is read to its end.
  for (const layer of layers) await layer.drain();
}

/** A layer's runs as pieces without gaps, from byte 0 to `size`, of which a walk is at one. */
class PieceCursor<L extends SeenLayer> {
  piece: VisibleExtent<L> = { offset: 0, length: 0, state: "clean" };
  /** Where the piece ends. */
  end = 0;
  readonly #layer: L;
  readonly #size: number;
  /** Where the layer ends. */
  readonly #layerEnd: number;
  readonly #blocks: AsyncIterator<readonly LayerRun[]>;
  #block: readonly LayerRun[] = [];
  /** Index of the next run of the block. */
  #next = 0;
  /** Pieces that come next, the last one first. */
  readonly #ahead: VisibleExtent<L>[] = [];
  #isDone = false;
  readonly #limit: LimitFunction | undefined;
  /** Nobody comes to what is not being read yet. */
  #isOver = false;
  /** The block that comes next, if it is being read already. */
  #coming: Promise<IteratorResult<readonly LayerRun[]>> | undefined;

  /** @param limit begins the reads of the blocks behind the first one; undefined: those are not ahead */
  constructor(layer: L, size: number, onDamage: OnDamage, limit: LimitFunction | undefined) {
    this.#layer = layer;
    this.#limit = limit;
    this.#size = size;
    this.#layerEnd = Math.min(layer.geometry.virtualSize, size);
    const blocks = "runBlocks" in layer ? layer.runBlocks(onDamage) : oneByOne(layer.runs(onDamage));
    this.#blocks = blocks[Symbol.asyncIterator]();
  }

  /** Goes on to the piece at an offset. @returns false if {@link more} has to be awaited first */
  moveTo(offset: number): boolean {
    while (this.end <= offset) {
      const ahead = this.#ahead.pop();
      if (ahead) {
        // Where the disk has shrunk since, the layer goes on past the end.
        if (ahead.offset < this.#layerEnd) this.#take(ahead);
      } else if (this.#next < this.#block.length) {
        this.#see(this.#block[this.#next++] as LayerRun);
      } else if (this.#isDone) {
        this.#takeGap(this.#size);
      } else return false;
    }
    return true;
  }

  /** Reads what is left. */
  async drain(): Promise<void> {
    while (!this.#isDone) await this.more();
  }

  /** Reads more of the layer. */
  async more(): Promise<void> {
    const next = await (this.#coming ?? this.#blocks.next());
    this.#coming = undefined;
    this.#isDone = next.done === true;
    this.#block = next.done === true ? [] : next.value;
    this.#next = 0;
    if (this.#limit && !this.#isDone) this.readAhead(this.#limit);
  }

  /** Begins to read the block that comes next. */
  readAhead(limit: LimitFunction): void {
    this.#coming = limit(async () => (this.#isOver ? { done: true, value: undefined } : this.#blocks.next()));
    // Whoever comes to it is told.
    this.#coming.catch(() => undefined);
  }

  /** Nothing is being read, and nothing will be. */
  async settled(): Promise<void> {
    this.#isOver = true;
    await this.#coming?.catch(() => undefined);
  }

  #see(run: LayerRun): void {
    const { clusterSize } = this.#layer.geometry;
    const offset = run.cluster * clusterSize;
    const length = run.count * clusterSize;
    switch (run.kind) {
      case "data":
        this.#ahead.push({ offset, length, state: "data", from: { layer: this.#layer, run } });
        return;
      case "zero":
        this.#ahead.push({ offset, length, state: "zero" });
        return;
      case "partial":
        this.#ahead.push(...partialPieces(this.#layer, run).reverse());
        return;
      default:
        run satisfies never;
    }
  }

  /** What lies between this piece and the one that comes is taken first. */
  #take(ahead: VisibleExtent<L>): void {
    if (ahead.offset > this.end) {
      this.#ahead.push(ahead);
      this.#takeGap(ahead.offset);
      return;
    }
    const end = Math.min(ahead.offset + ahead.length, this.#layerEnd);
    this.piece = ahead;
    this.end = end;
  }

  #takeGap(next: number): void {
    const isPastEnd = this.end >= this.#layerEnd;
    // If the disk has grown, the layers above see zeroes past the end of this layer.
    const state = isPastEnd || this.#layer.complete ? "zero" : "clean";
    const end = isPastEnd ? next : Math.min(next, this.#layerEnd);
    if (end <= this.end) throw new RangeError(`a layer ends before byte ${next}`);
    this.piece = { offset: this.end, length: end - this.end, state };
    this.end = end;
  }
}

async function* oneByOne(runs: AsyncIterable<LayerRun>): AsyncGenerator<readonly LayerRun[]> {
  for await (const run of runs) yield [run];
}

/** The pieces of a cluster that is defined in part, in guest order. */
function partialPieces<L extends SeenLayer>(
  layer: L,
  run: LayerRun & { readonly kind: "partial" },
): VisibleExtent<L>[] {
  const { clusterSize } = layer.geometry;
  const from = { layer, run };
  const pieces: VisibleExtent<L>[] = [
    ...maskStretches(run.dataMask, clusterSize).map((s) => ({ ...s, state: "data" as const, from })),
    ...maskStretches(run.zeroMask, clusterSize).map((s) => ({ ...s, state: "zero" as const })),
  ];
  return pieces
    .sort((a, b) => a.offset - b.offset)
    .map((piece) => ({ ...piece, offset: run.cluster * clusterSize + piece.offset }));
}
