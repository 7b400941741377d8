import { closeAll } from "../base/in-parallel.js";
import { openChain } from "../chain/chain.js";
import { failOnDamage, type Layer } from "../chain/layer.js";
import { dataBytesOf, type Geometry } from "../image/image.js";
import { ImageFile } from "../image/image-file.js";
import type { DiskChain } from "./disk-chain.js";
import { mergedParts, visibleBytes } from "./merge-walk.js";

/** How a merge is done. It is chosen from tables and digest files, without reading data. */
export interface MergeMethod {
  /** The point whose image takes the clusters that it lacks; null: a new image takes all clusters. */
  readonly base: string | null;
  /** Guest bytes of data to be written. */
  readonly writeBytes: number;
  /** Of the merged image, in bytes. */
  readonly clusterSize: number;
}

/**
 * Chooses the image that already has most of the visible data, because only the rest must be written. The
 * format of the staying point's image does not change.
 *
 * @throws {DamageError} a layer is missing, or its tables or digest file are damaged
 */
export async function chooseMergeMethod(chain: DiskChain): Promise<MergeMethod> {
  const layers = await openChain(chain.repository, chain.domain, chain.links);
  try {
    const finest = finestOf(chain, layers);
    const visible = await visibleBytes(layers, finest, failOnDamage);
    const total = visible.reduce((sum, bytes) => sum + bytes, 0);
    let best: MergeMethod = { base: null, writeBytes: total, clusterSize: finest.clusterSize };
    for (const [index, layer] of layers.entries()) {
      if (!(await canBeBase(chain, layers, index))) continue;
      const { clusterSize } = layer.geometry;
      let writeBytes = total - (visible[index] ?? 0);
      if (best.base !== null && writeBytes >= best.writeBytes) continue;
      if (clusterSize > finest.clusterSize && layer.disk.format === "qcow2") {
        writeBytes = await bytesInto(layer, layers, { ...finest, clusterSize });
        if (writeBytes >= best.writeBytes) continue;
      }
      best = { base: layer.pointId, writeBytes, clusterSize };
    }
    return best;
  } finally {
    await closeAll(...layers);
  }
}

/** Whether a layer's image can be the one that takes the other layers' clusters. */
async function canBeBase(chain: DiskChain, layers: readonly Layer[], index: number): Promise<boolean> {
  const layer = layers[index] as Layer;
  if (layer.disk.format !== chain.links[0].disk.format) return false;
  const finest = finestOf(chain, layers);
  // Larger clusters have larger subclusters, which can't be partly clean. A complete image has no clean ones.
  if (layer.geometry.clusterSize > finest.clusterSize && !layers.at(-1)?.complete) return false;
  if (layer.disk.format === "qcow2") return true;
  // Bytes behind the end of the layer's disk would become part of a disk that has grown since.
  const file = await ImageFile.open(layer.stored.path);
  try {
    return (await file.size()) === layer.geometry.virtualSize;
  } finally {
    await file.close();
  }
}

/**
 * Guest bytes that a merge writes into a qcow2 base with larger clusters. A cluster of which the base shows
 * only a part counts as a whole, because it is written to a new place.
 */
async function bytesInto(base: Layer, layers: readonly Layer[], geometry: Geometry): Promise<number> {
  let bytes = 0;
  for await (const part of mergedParts(layers, geometry, failOnDamage)) {
    if (part.kind === "data" && part.from.layer !== base) {
      bytes += dataBytesOf(part, geometry);
    } else if (part.kind === "mixed") {
      const data = part.pieces.filter(({ state }) => state === "data");
      const others = data.filter(({ from }) => from?.layer !== base);
      const isWhole = others.length > 0 && others.length < data.length;
      bytes += isWhole ? geometry.clusterSize : others.reduce((sum, { length }) => sum + length, 0);
    }
  }
  return bytes;
}

/** The disk's size at the staying point, with the smallest cluster size of all layers. */
function finestOf({ links }: DiskChain, layers: readonly Layer[]): Geometry {
  const clusterSize = Math.min(...layers.map(({ geometry }) => geometry.clusterSize));
  return { virtualSize: links[0].disk.virtualSize, clusterSize };
}
