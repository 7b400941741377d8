import type { VisibleExtent } from "../chain/overlay.js";
import type { Origin } from "./merge-walk.js";

/** A cluster that consists of several pieces, or that the end of the disk cuts off. */
export interface MixedCluster {
  readonly cluster: number;
  /** In guest order, gapless up to the end of the cluster or of the disk. */
  readonly pieces: readonly VisibleExtent[];
  /** Subclusters with data. */
  readonly dataMask: number;
  /** Subclusters that read as zeroes; in a complete image all that have no data. */
  readonly zeroMask: number;
  /** The whole cluster, with zeroes where no piece has data. */
  readonly bytes: Buffer;
  /** True if data and zeroes share a subcluster, or the end of the disk cuts off the cluster. */
  readonly blended: boolean;
}

/** Whole clusters side by side, on the disk and in the image. */
export interface Placed {
  readonly cluster: number;
  readonly count: number;
  /** Host offset to which they are written; undefined: they are not written now. */
  readonly to: number | undefined;
}

/** Takes the clusters of a merge, in guest order. */
export interface MergeTarget extends AsyncDisposable {
  /** Bytes of data that were or will be written, without tables. */
  readonly writtenBytes: number;
  /** Bytes that data clusters occupy in the file. */
  readonly storedBytes: number;
  /** How many of the next whole clusters `keep` takes, or does not take, all alike; default: all. */
  alike?(cluster: number, count: number, from: Origin): number | Promise<number>;
  /** Takes whole clusters that the image already has. False if they are to be stored instead. */
  keep(cluster: number, count: number, from: Origin): Promise<boolean>;
  /** Stores whole clusters. `bytes` may end at the end of the disk. */
  store(cluster: number, count: number, from: Origin, bytes: Buffer): Promise<void>;
  /**
   * Like `store`, for clusters whose bytes somebody else writes before `finish`. Undefined: they have to be
   * stored.
   */
  place?(cluster: number, count: number, from: Origin): Promise<readonly Placed[] | undefined>;
  storeMixed(mixed: MixedCluster): Promise<void>;
  /** Records whole clusters that read as zeroes. */
  zero(cluster: number, count: number): void;
  /**
   * Removes the data that the image has in whole clusters which read as zeroes. Called before `zero`, and
   * alone if the image is complete, because such an image doesn't list its zeroes.
   */
  erase?(cluster: number, count: number): Promise<void>;
  /**
   * Writes what completes the image: tables, a map or a patch.
   * @returns the header that puts a changed qcow2 image's new tables into effect; undefined for other images
   */
  finish(options: { readonly sync: boolean }): Promise<Buffer | undefined>;
}
