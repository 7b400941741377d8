import { failOnDamage, type Layer } from "../chain/layer.js";
import type { Geometry } from "../image/image.js";
import type { Qcow2Reader } from "../qcow2/reader.js";
import { type CopiedStretch, findStretches, ShownClusters } from "./copied-stretches.js";
import type { OpenLayers } from "./merge-disk.js";
import { mergedParts, type Origin, visibleBytes } from "./merge-walk.js";
import { mergedAlgorithm } from "./merged-digests.js";

const MIB = 1024 * 1024;
/** S3 takes no shorter part of an object, but for the last one. */
const LEAST_BYTES = 5 * MIB;
const MOST_STRETCHES = 4_000;
/** Of the parts of what is written behind the copies. They grow if 1,500 don't suffice. */
const TAIL_PART_BYTES = 8 * MIB;
const TAIL_PARTS = 1_500;

/** How a new image is made in an object store. Places are in clusters of the file. */
export interface CopyPlan {
  readonly geometry: Geometry;
  /** Clusters that are written before what is copied, with the header. */
  readonly head: number;
  /** `image` is the index of the layer. */
  readonly stretches: readonly CopiedStretch[];
  /** Of each part behind the copies, in bytes. */
  readonly tailPartBytes: number;
  /** The method of compressed clusters that may stay compressed. */
  readonly compression: Qcow2Reader["header"]["compression"] | undefined;
  /** Bytes that the store copies, with what is unused among them. */
  readonly copiedBytes: number;
  /** Bytes of data that are read and written, at most. */
  readonly travellingBytes: number;
}

/**
 * Plans how the store makes a merged image: from tables and digest files, without reading data.
 * @param virtualSize the disk's size at the staying point
 * @throws {DamageError} the tables or the digest file of a layer are damaged
 */
export async function planCopies(
  { layers, images }: Pick<OpenLayers, "layers" | "images">,
  virtualSize: number,
): Promise<CopyPlan> {
  const geometry = { virtualSize, clusterSize: await clusterSizeOf(layers, virtualSize) };
  const { clusterSize } = geometry;
  const algorithm = mergedAlgorithm(layers);
  const shown = layers.map((layer) => {
    const image = images.get(layer);
    // Only with digests that are carried over can it be found out what the store has copied.
    const hasDigests = algorithm !== undefined && layer.disk.digests?.algorithm === algorithm;
    const fits = layer.geometry.clusterSize === clusterSize && hasDigests;
    return image && fits ? new ShownClusters(Math.floor(image.fileEnd / clusterSize)) : undefined;
  });
  let compression: CopyPlan["compression"];
  let others = 0;
  const show = async (cluster: number, count: number, from: Origin): Promise<void> => {
    const clusters = shown[layers.indexOf(from.layer)];
    const image = images.get(from.layer);
    if (image?.isCompressed(from.run.hostOffset)) compression ??= image.header.compression;
    if (!clusters || !image || from.run.kind !== "data") others += count;
    else if (!image.isCompressed(from.run.hostOffset)) {
      const first = from.run.hostOffset / clusterSize + cluster - from.run.cluster;
      clusters.add(first, first + count);
    } else if (image.header.compression !== compression) others += count;
    else {
      for (let i = 0; i < count; i += 1) {
        const { hostOffset, length } = await image.streamOf(cluster + i);
        clusters.add(Math.floor(hostOffset / clusterSize), Math.ceil((hostOffset + length) / clusterSize));
      }
    }
  };
  for await (const part of mergedParts(layers, geometry, failOnDamage)) {
    if (part.kind === "mixed") others += 1;
    else if (part.kind === "data") {
      // A cluster that the end of the disk cuts off is written anew.
      const isCut = (part.cluster + part.count) * clusterSize > virtualSize;
      if (isCut) others += 1;
      await show(part.cluster, isCut ? part.count - 1 : part.count, part.from);
    }
  }
  const least = Math.ceil(LEAST_BYTES / clusterSize);
  const found = findStretches(shown, others, { least, head: least, most: MOST_STRETCHES });
  const copied = found.stretches.reduce((sum, { first, end }) => sum + end - first, 0);
  const travellingBytes = found.others * clusterSize;
  // Tables have less than a thousandth of the data's bytes.
  const tailBytes = travellingBytes + (found.others + copied) * clusterSize * 0.001 + clusterSize * 64;
  const tailParts = found.stretches.length === 0 ? 9_500 : TAIL_PARTS;
  return {
    geometry,
    head: least,
    stretches: found.stretches,
    tailPartBytes: Math.max(TAIL_PART_BYTES, Math.ceil(tailBytes / tailParts / MIB) * MIB),
    compression,
    copiedBytes: copied * clusterSize,
    travellingBytes,
  };
}

/** That of the image which shows most, unless it is too coarse: only a complete image has nothing clean. */
async function clusterSizeOf(layers: readonly Layer[], virtualSize: number): Promise<number> {
  const sizes = layers.map(({ geometry }) => geometry.clusterSize);
  const finest = Math.min(...sizes);
  if (sizes.every((size) => size === finest) || !layers.at(-1)?.complete) return finest;
  const visible = await visibleBytes(layers, { virtualSize, clusterSize: finest }, failOnDamage);
  return sizes[visible.indexOf(Math.max(...visible))] ?? finest;
}
