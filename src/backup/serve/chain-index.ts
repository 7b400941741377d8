import pLimit, { type LimitFunction } from "p-limit";
import { failOnDamage, type Layer } from "../chain/layer.js";
import { seenBlocks, type VisibleExtent } from "../chain/overlay.js";
import { ALL_SUBCLUSTERS } from "../image/image.js";
import { ExtentIndex, type ExtentSource } from "./extent-index.js";

/** Bytes that are read ahead of the layers of all disks that are opened side by side. */
const AHEAD_BYTES = 64 * 1024 * 1024;
/**
 * Layers that are read or opened at a time, of all those disks. With the manifests of three disks that are
 * looked for meanwhile, eight of each, they leave no request of a client behind them without a connection.
 */
const OPENING_AT_ONCE = 24;

/** What disks share that are opened side by side. */
export interface Opening {
  readonly limit: LimitFunction;
  readonly disks: number;
}

/** @param disks that are opened side by side, at most */
export function openingOf(disks: number): Opening {
  return { limit: pLimit(OPENING_AT_ONCE), disks };
}

/**
 * Builds the index of a disk in one walk over its whole chain.
 * @throws {DamageError} as the walk does
 */
export async function indexOf(
  layers: readonly Layer[],
  size: number,
  { limit, disks }: Opening,
  signal: AbortSignal | undefined,
): Promise<ExtentIndex> {
  const index = new ExtentIndex(
    layers.map(({ geometry, digestSize }) => ({ clusterSize: geometry.clusterSize, digestSize })),
  );
  const ahead = { limit, mostBytes: AHEAD_BYTES / disks };
  const numbers = new Map(layers.map((layer, number) => [layer, number]));
  for await (const block of seenBlocks(layers, size, failOnDamage, { ahead })) {
    signal?.throwIfAborted();
    for (const piece of block) index.append(piece.length, placeOf(piece, numbers));
  }
  return index;
}

function placeOf(piece: VisibleExtent, numbers: ReadonlyMap<Layer, number>): ExtentSource | undefined {
  const { offset, state, from } = piece;
  switch (state) {
    case "zero":
      return undefined;
    case "clean":
      throw new RangeError("the last layer of a chain has to be complete");
    case "data": {
      const run = from?.run;
      if (!from || !run || run.kind === "zero") throw new RangeError("data has to be somewhere");
      const { clusterSize } = from.layer.geometry;
      const clusters = Math.floor(offset / clusterSize) - run.cluster;
      return {
        layer: numbers.get(from.layer) ?? 0,
        hostOffset: run.hostOffset + clusters * clusterSize,
        digestsAt: (run.digestsAt ?? 0) + clusters * from.layer.digestSize,
        dataMask: run.kind === "partial" ? run.dataMask : ALL_SUBCLUSTERS,
      };
    }
    default:
      return state satisfies never;
  }
}
