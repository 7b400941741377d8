import type { DigestedRun } from "../chain/checked-image.js";
import type { Layer } from "../chain/layer.js";
import type { DamageOf, VisibleExtent } from "../chain/overlay.js";
import { seenBlocks } from "../chain/overlay.js";
import { ALL_SUBCLUSTERS, type Geometry, SUBCLUSTERS, subclustersOf } from "../image/image.js";

/** Where visible data is stored. */
export interface Origin {
  readonly layer: Layer;
  readonly run: Exclude<DigestedRun, { kind: "zero" }>;
}

/** Neighbouring clusters as several layers show them together. Clusters that no part mentions are clean. */
export type MergedPart =
  | { readonly kind: "zero"; readonly cluster: number; readonly count: number }
  | { readonly kind: "data"; readonly cluster: number; readonly count: number; readonly from: Origin }
  /**
   * A cluster of several pieces, which are in order and gapless up to the end of the cluster or of the disk.
   */
  | { readonly kind: "mixed"; readonly cluster: number; readonly pieces: readonly VisibleExtent[] };

/**
 * Walks over what several layers (top first) show together, in clusters of `geometry`. The last layer may be
 * an increment.
 */
export async function* mergedParts(
  layers: readonly Layer[],
  geometry: Geometry,
  onDamage: DamageOf,
): AsyncGenerator<MergedPart> {
  const { clusterSize, virtualSize } = geometry;
  let mixed: VisibleExtent[] = [];
  for await (const block of seenBlocks(layers, virtualSize, onDamage)) {
    for (const piece of block) {
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
}

/**
 * How many whole clusters lie from `offset` to `end`; 0 if no cluster begins at `offset`. The disk's last
 * cluster counts as whole even if the end of the disk cuts it off.
 */
function wholeClusters(offset: number, end: number, { clusterSize, virtualSize }: Geometry): number {
  if (offset % clusterSize !== 0) return 0;
  const stop = end === virtualSize ? Math.ceil(end / clusterSize) : Math.floor(end / clusterSize);
  return stop - offset / clusterSize;
}

function partOf(piece: VisibleExtent, cluster: number, count: number): MergedPart | undefined {
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

/**
 * The layer and the run that a piece's data comes from.
 * @throws {RangeError} the piece has no data
 */
export function originOf({ from, offset }: VisibleExtent): Origin {
  if (!from || from.run.kind === "zero") throw new RangeError(`the data at byte ${offset} has no layer`);
  return { layer: from.layer, run: from.run };
}

/**
 * Bytes of data that each layer shows, by its index in `layers`. If a layer's image is the base of the merge,
 * these bytes need not be written.
 */
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
  for await (const block of seenBlocks(layers, geometry.virtualSize, onDamage)) {
    for (const piece of block) if (piece.state === "data") add(originOf(piece).layer, piece.length);
  }
  return bytes;
}

/** The mask of the subclusters in which pieces have a byte. The cluster begins at guest offset `start`. */
export function maskOf(pieces: readonly VisibleExtent[], start: number, clusterSize: number): number {
  const bits = (mask: number, { offset, length }: VisibleExtent): number =>
    mask | subclustersOf({ offset: offset - start, length }, clusterSize);
  return pieces.reduce(bits, 0) >>> 0;
}

/**
 * The states of a cluster's subclusters, by its pieces. `blended`: data and zeroes share a subcluster.
 * @param complete whether the merged image is complete, so that nothing is clean
 * @throws {RangeError} clean and data share a subcluster
 */
export function masksOf(
  pieces: readonly VisibleExtent[],
  start: number,
  { clusterSize, virtualSize }: Geometry,
  complete: boolean,
): { dataMask: number; zeroMask: number; blended: boolean } {
  const of = (state: VisibleExtent["state"]): number =>
    maskOf(
      pieces.filter((piece) => piece.state === state),
      start,
      clusterSize,
    );
  const [data, zero, clean] = [of("data"), of("zero"), of("clean")];
  if ((data & clean) !== 0) throw new RangeError(`clean and data share a subcluster at byte ${start}`);
  // Subclusters behind the end of the disk count as data in a cluster of data alone. Otherwise they count as
  // zero if nothing is clean.
  const behind = subclustersFrom(virtualSize - start, clusterSize);
  const defined = complete ? ~data : (zero | (clean === 0 ? behind : 0)) & ~data;
  const dataMask = (data | (zero === 0 && clean === 0 ? behind : 0)) >>> 0;
  return { dataMask, zeroMask: (defined & ~dataMask) >>> 0, blended: (data & zero) !== 0 };
}

/** The mask of the subclusters that begin at or behind byte `byte` of the cluster. */
function subclustersFrom(byte: number, clusterSize: number): number {
  const first = Math.ceil(byte / (clusterSize / SUBCLUSTERS));
  return first >= SUBCLUSTERS ? 0 : (ALL_SUBCLUSTERS << first) >>> 0;
}
