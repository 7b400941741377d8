import type { DigestedRun } from "../chain/checked-image.js";
import type { Layer } from "../chain/layer.js";
import type { DamageOf, Piece } from "../chain/overlay.js";
import { seenThrough } from "../chain/overlay.js";
import { ALL_SUBCLUSTERS, type Geometry, SUBCLUSTERS, subclustersOf } from "../image/image.js";

/** Where visible bytes come from. */
export interface Origin {
  readonly layer: Layer;
  readonly run: Exclude<DigestedRun, { kind: "zero" }>;
}

/** Neighbouring clusters of several layers seen as one; what no part names is clean. */
export type MergedPart =
  | { readonly kind: "zero"; readonly cluster: number; readonly count: number }
  | { readonly kind: "data"; readonly cluster: number; readonly count: number; readonly from: Origin }
  /** A cluster that is not of one piece: its pieces, in order, gapless up to its end or the disk's. */
  | { readonly kind: "mixed"; readonly cluster: number; readonly pieces: readonly Piece[] };

/**
 * What several layers (top first) say together, in clusters of `geometry`. The last layer may be an increment.
 */
export async function* mergedParts(
  layers: readonly Layer[],
  geometry: Geometry,
  onDamage: DamageOf,
): AsyncGenerator<MergedPart> {
  const { clusterSize, virtualSize } = geometry;
  let mixed: Piece[] = [];
  for await (const piece of seenThrough(layers, virtualSize, onDamage)) {
    const end = piece.offset + piece.length;
    for (let offset = piece.offset; offset < end; ) {
      const cluster = Math.floor(offset / clusterSize);
      const whole = wholeClusters(offset, end, geometry);
      if (whole > 0) {
        const part = partOf(piece, cluster, whole);
        if (part) yield part;
        offset = Math.min((cluster + whole) * clusterSize, end);
        continue;
      }
      const clusterEnd = Math.min((cluster + 1) * clusterSize, virtualSize);
      const stop = Math.min(end, clusterEnd);
      mixed.push({ ...piece, offset, length: stop - offset });
      if (stop === clusterEnd) {
        if (mixed.some(({ state }) => state !== "clean")) yield { kind: "mixed", cluster, pieces: mixed };
        mixed = [];
      }
      offset = stop;
    }
  }
}

/** How many clusters, from one that begins at `offset`, end at or before `end`; the disk's last may be cut off. */
function wholeClusters(offset: number, end: number, { clusterSize, virtualSize }: Geometry): number {
  if (offset % clusterSize !== 0) return 0;
  const stop = end === virtualSize ? Math.ceil(end / clusterSize) : Math.floor(end / clusterSize);
  return stop - offset / clusterSize;
}

function partOf(piece: Piece, cluster: number, count: number): MergedPart | undefined {
  switch (piece.state) {
    case "clean":
      return undefined;
    case "zero":
      return { kind: "zero", cluster, count };
    case "data":
      return { kind: "data", cluster, count, from: originOf(piece) };
    default:
      return piece.state satisfies never;
  }
}

/** Only for pieces of data. */
export function originOf({ from, offset }: Piece): Origin {
  if (!from || from.run.kind === "zero")
    throw new RangeError(`the data at byte ${offset} comes from nowhere`);
  return { layer: from.layer, run: from.run };
}

/** Bytes that each layer shows, by its place in the chain: what need not be written if its image is the one to keep. */
export async function visibleBytes(
  layers: readonly Layer[],
  geometry: Geometry,
  onDamage: DamageOf,
): Promise<number[]> {
  const bytes = layers.map(() => 0);
  const add = (layer: Layer, length: number): void => {
    const index = layers.indexOf(layer);
    bytes[index] = (bytes[index] ?? 0) + length;
  };
  for await (const piece of seenThrough(layers, geometry.virtualSize, onDamage)) {
    if (piece.state === "data") add(originOf(piece).layer, piece.length);
  }
  return bytes;
}

/** The mask of the subclusters in which pieces have a byte, in the cluster that begins at byte `start`. */
export function maskOf(pieces: readonly Piece[], start: number, clusterSize: number): number {
  const bits = (mask: number, { offset, length }: Piece): number =>
    mask | subclustersOf({ offset: offset - start, length }, clusterSize);
  return pieces.reduce(bits, 0) >>> 0;
}

/** What the pieces of a cluster make of its subclusters. */
export function masksOf(
  pieces: readonly Piece[],
  start: number,
  { clusterSize, virtualSize }: Geometry,
  complete: boolean,
): { dataMask: number; zeroMask: number; blended: boolean } {
  const of = (state: Piece["state"]): number =>
    maskOf(
      pieces.filter((piece) => piece.state === state),
      start,
      clusterSize,
    );
  const [data, zero, clean] = [of("data"), of("zero"), of("clean")];
  if ((data & clean) !== 0) throw new RangeError(`clean and data share a subcluster at byte ${start}`);
  // Behind the end of the disk nothing can be clean.
  const behind = subclustersFrom(virtualSize - start, clusterSize);
  const defined = complete ? ~data : (zero | (clean === 0 ? behind : 0)) & ~data;
  const dataMask = (data | (zero === 0 && clean === 0 ? behind : 0)) >>> 0;
  return { dataMask, zeroMask: (defined & ~dataMask) >>> 0, blended: (data & zero) !== 0 };
}

/** The subclusters that begin at or behind a byte of the cluster. */
function subclustersFrom(byte: number, clusterSize: number): number {
  const first = Math.ceil(byte / (clusterSize / SUBCLUSTERS));
  return first >= SUBCLUSTERS ? 0 : (ALL_SUBCLUSTERS << first) >>> 0;
}
