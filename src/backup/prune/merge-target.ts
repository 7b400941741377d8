import type { Piece } from "../chain/overlay.js";
import type { Origin } from "./merge-walk.js";

/** A cluster of which only a part is defined, with its bytes at their places. */
export interface MixedCluster {
  readonly cluster: number;
  readonly pieces: readonly Piece[];
  readonly dataMask: number;
  readonly zeroMask: number;
  readonly bytes: Buffer;
  /** Zeroes lie in the same subclusters as data. */
  readonly blended: boolean;
}

/** Where the clusters of a merge go; everything comes in guest order. */
export interface MergeTarget extends AsyncDisposable {
  /** Bytes of data that were or will be written, without tables. */
  readonly writtenBytes: number;
  /** Bytes of data clusters as the file has them. */
  readonly storedBytes: number;
  /** Whole clusters that nothing has to be written for; false where they have to be stored. */
  keep(cluster: number, count: number, from: Origin): Promise<boolean>;
  /** Whole clusters; `bytes` may end at the end of the disk. */
  store(cluster: number, count: number, from: Origin, bytes: Buffer): Promise<void>;
  storeMixed(mixed: MixedCluster): Promise<void>;
  zero(cluster: number, count: number): void;
  /** Whole clusters that read as zeroes in an image that stands alone, without being named: whatever is there has to go. */
  erase?(cluster: number, count: number): Promise<void>;
  /** @returns the header that makes a changed image count; undefined where the file is new and complete by itself */
  finish(options: { readonly sync: boolean }): Promise<Buffer | undefined>;
}
