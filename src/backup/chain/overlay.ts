import type { OnDamage } from "../base/damage.js";
import type { ExtentState } from "../base/extent.js";
import { maskStretches } from "../image/image.js";
import type { Layer, LayerRun } from "./layer.js";

/** What an overlay needs of a layer. It can also be a single image that belongs to no point. */
export type SeenLayer = Pick<Layer, "geometry" | "complete" | "runs">;
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
  const cursors = layers.map((layer) => new PieceCursor(layerPieces(layer, size, onDamage(layer))));
  for (let offset = 0; offset < size; ) {
    let end = size;
    let seen: VisibleExtent<L> | undefined;
    for (const cursor of cursors) {
      const piece = cursor.covers(offset) ?? (await cursor.advanceTo(offset));
      end = Math.min(end, piece.offset + piece.length);
      seen = piece;
      if (piece.state !== "clean") break;
    }
    if (!seen) throw new RangeError("a chain has at least one layer");
    yield { ...seen, offset, length: end - offset };
    offset = end;
  }
  // Each layer compares the SHA-256 of its digest file at its end, so all are read to the end.
  for (const cursor of cursors) await cursor.finish();
}

/** Makes the listener for the damage of a layer. */
export type DamageOf<L extends SeenLayer = Layer> = (layer: L) => OnDamage;

/** Goes along one layer's pieces, which have no gaps. */
class PieceCursor<L extends SeenLayer> {
  readonly #pieces: AsyncGenerator<VisibleExtent<L>>;
  #piece: VisibleExtent<L> | undefined;

  constructor(pieces: AsyncGenerator<VisibleExtent<L>>) {
    this.#pieces = pieces;
  }

  /** The current piece, if byte `offset` is in it. */
  covers(offset: number): VisibleExtent<L> | undefined {
    const piece = this.#piece;
    return piece && offset < piece.offset + piece.length ? piece : undefined;
  }

  /** Goes on to the piece with byte `offset`, which is not before the current piece. */
  async advanceTo(offset: number): Promise<VisibleExtent<L>> {
    for (;;) {
      const next = await this.#pieces.next();
      if (next.done) throw new RangeError(`the pieces of a layer end before byte ${offset}`);
      this.#piece = next.value;
      const covering = this.covers(offset);
      if (covering) return covering;
    }
  }

  async finish(): Promise<void> {
    while (!(await this.#pieces.next()).done);
  }
}

/** A layer's runs as pieces without gaps, from byte 0 to `size`. */
async function* layerPieces<L extends SeenLayer>(
  layer: L,
  size: number,
  onDamage: OnDamage,
): AsyncGenerator<VisibleExtent<L>> {
  const end = Math.min(layer.geometry.virtualSize, size);
  const gap: ExtentState = layer.complete ? "zero" : "clean";
  let offset = 0;
  for await (const run of layer.runs(onDamage)) {
    for (const piece of runPieces(layer, run)) {
      const stop = Math.min(piece.offset + piece.length, end);
      if (piece.offset >= stop) continue;
      if (piece.offset > offset) yield { offset, length: piece.offset - offset, state: gap };
      yield { ...piece, length: stop - piece.offset };
      offset = stop;
    }
  }
  if (offset < end) yield { offset, length: end - offset, state: gap };
  // If the disk has grown, the layers above see zeroes past the end of this layer.
  if (end < size) yield { offset: end, length: size - end, state: "zero" };
}

function* runPieces<L extends SeenLayer>(layer: L, run: LayerRun): Generator<VisibleExtent<L>> {
  const { clusterSize } = layer.geometry;
  const offset = run.cluster * clusterSize;
  const length = run.count * clusterSize;
  switch (run.kind) {
    case "data":
      yield { offset, length, state: "data", from: { layer, run } };
      return;
    case "zero":
      yield { offset, length, state: "zero" };
      return;
    case "partial": {
      const stretches = [
        ...maskStretches(run.dataMask, clusterSize).map((s) => ({
          ...s,
          state: "data" as const,
          from: { layer, run },
        })),
        ...maskStretches(run.zeroMask, clusterSize).map((s) => ({ ...s, state: "zero" as const })),
      ];
      stretches.sort((a, b) => a.offset - b.offset);
      for (const stretch of stretches) yield { ...stretch, offset: offset + stretch.offset };
      return;
    }
    default:
      run satisfies never;
  }
}
