/**
 * What image files of every format have in common: a disk as a list of runs, and the interfaces of image
 * writers and readers. Read this file first, then `run-list.ts` (runs in memory) and `image-file.ts` (reads
 * and writes at positions in a file). The raw format is here too: `raw-writer.ts`, `raw-reader.ts`, and
 * `raw-map.ts`, a text file that says which parts of the disk an increment defines. The qcow2 format has its
 * own folder. `slots.ts` gives the clusters of planned runs their places.
 *
 * Nothing here uses the network or knows NBD, libvirt or repositories.
 *
 * An image is seen as clusters. A *run* is a stretch of neighbouring clusters that are alike; what no run
 * mentions is clean (in an increment) or zero (in a full image). A cluster of which only a part is defined is
 * a run of its own, with one bit a subcluster (bit 0 = the first):
 *
 *     cluster      |0       |1       |2       |3       |4       |
 *     guest        |dddddddd|dddddddd|        |zzzzzzzz|  dd zz |
 *     runs          data, count 2     (gap)    zero     partial, dataMask 0b00001100, zeroMask 0b01100000
 */

import type { OnDamage } from "../base/damage.js";

/** Sizes in bytes. */
export interface Geometry {
  /** Bytes that the guest sees; need not be a multiple of a sector or a cluster. */
  readonly virtualSize: number;
  /** A power of two, 16 KiB .. 2 MiB for images that we write. */
  readonly clusterSize: number;
}

export type ImageFormat = "qcow2" | "raw";

/** Number of guest clusters of a disk. The last one may extend past the virtual size. */
export function clustersIn({ virtualSize, clusterSize }: Geometry): number {
  return Math.ceil(virtualSize / clusterSize);
}

/** Subclusters in a cluster: qcow2's extended L2 entries have 32. */
export const SUBCLUSTERS = 32;
/** The mask of all subclusters of a cluster. */
export const ALL_SUBCLUSTERS = 0xffffffff;

/**
 * The stretches of neighbouring bits that are set in a subcluster mask, as byte ranges inside the cluster.
 *
 *     mask 0b0110_0001, subclusters of 2 KiB  ->  [0, 2 KiB), [10 KiB, 14 KiB)
 */
export function maskStretches(mask: number, clusterSize: number): { offset: number; length: number }[] {
  const subclusterSize = clusterSize / SUBCLUSTERS;
  const stretches: { offset: number; length: number }[] = [];
  let last: { offset: number; length: number } | undefined;
  for (let bit = 0; bit < SUBCLUSTERS; bit += 1) {
    if (((mask >>> bit) & 1) === 0) last = undefined;
    else if (last) last.length += subclusterSize;
    else {
      last = { offset: bit * subclusterSize, length: subclusterSize };
      stretches.push(last);
    }
  }
  return stretches;
}

/** The mask of the subclusters in which a range inside the cluster has a byte; `length` is at least 1. */
export function subclustersOf(
  { offset, length }: { readonly offset: number; readonly length: number },
  clusterSize: number,
): number {
  const subclusterSize = clusterSize / SUBCLUSTERS;
  const first = Math.floor(offset / subclusterSize);
  const last = Math.floor((offset + length - 1) / subclusterSize);
  return ((ALL_SUBCLUSTERS >>> (SUBCLUSTERS - 1 - (last - first))) << first) >>> 0;
}

/**
 * Where the data subclusters of a partial run lie, cut off at the end of the disk. Offsets are within the
 * cluster.
 */
export function dataStretches(
  run: { readonly cluster: number; readonly dataMask: number },
  { clusterSize, virtualSize }: Geometry,
): { offset: number; length: number }[] {
  const inside = virtualSize - run.cluster * clusterSize;
  return maskStretches(run.dataMask, clusterSize)
    .filter((stretch) => stretch.offset < inside)
    .map(({ offset, length }) => ({ offset, length: Math.min(length, inside - offset) }));
}

export type ClusterRun = DataRun | ZeroRun | PartialRun;

/** `count` clusters from guest cluster `cluster`, stored side by side in the file from `hostOffset` on. */
export interface DataRun {
  readonly kind: "data";
  readonly cluster: number;
  readonly count: number;
  readonly hostOffset: number;
}

/** `count` clusters that read as zeroes and occupy nothing. */
export interface ZeroRun {
  readonly kind: "zero";
  readonly cluster: number;
  readonly count: number;
}

/**
 * One cluster of which only some subclusters are defined. The masks are disjoint unsigned 32-bit numbers, not
 * both zero. Its data subclusters lie at their own place inside the cluster-sized slot at `hostOffset`; with
 * `dataMask` 0 there is no slot and `hostOffset` is 0.
 */
export interface PartialRun {
  readonly kind: "partial";
  readonly cluster: number;
  readonly count: 1;
  readonly hostOffset: number;
  readonly dataMask: number;
  readonly zeroMask: number;
}

/** Clusters in the same state, as the block status describes them before any byte is read. */
export type PlannedRun =
  | { readonly kind: "data" | "zero"; readonly cluster: number; readonly count: number }
  | {
      readonly kind: "partial";
      readonly cluster: number;
      readonly count: 1;
      readonly dataMask: number;
      readonly zeroMask: number;
    };

/** How many cluster-sized slots of the file a run occupies. */
export function slotsOf(run: {
  readonly kind: ClusterRun["kind"];
  readonly count: number;
  readonly dataMask?: number;
}): number {
  switch (run.kind) {
    case "zero":
      return 0;
    case "data":
      return run.count;
    case "partial":
      return run.dataMask === 0 ? 0 : 1;
    default:
      return run.kind satisfies never;
  }
}

/**
 * Guest bytes that a run holds, cut off at the end of the disk. In a partial cluster only data subclusters
 * count.
 */
export function dataBytesOf(
  run: Pick<ClusterRun, "kind" | "cluster" | "count"> & { readonly dataMask?: number },
  { clusterSize, virtualSize }: Geometry,
): number {
  const inside = virtualSize - run.cluster * clusterSize;
  switch (run.kind) {
    case "zero":
      return 0;
    case "data":
      return Math.min(run.count * clusterSize, inside);
    case "partial":
      return maskStretches(run.dataMask ?? 0, clusterSize).reduce(
        (sum, { offset, length }) => sum + Math.max(0, Math.min(length, inside - offset)),
        0,
      );
    default:
      return run.kind satisfies never;
  }
}

/**
 * Builds an image file: first data in any order, then the runs in guest order, then `finish`.
 *
 * The owner creates it under a temporary name. It calls `finish` and then `close`, or after a failure only
 * `close`, and then unlinks the file. No method may be called after `close`.
 */
export interface ImageWriter {
  readonly geometry: Geometry;
  readonly format: ImageFormat;
  /**
   * Where guest cluster `cluster` goes in the file; it is the `rank`-th (from 0) of those set aside for
   * storing. A qcow2 image packs clusters, so only the rank counts. In a raw image only the guest cluster
   * counts.
   */
  hostOffset(cluster: number, rank: number): number;
  /**
   * Stores `data` at `hostOffset` before it returns, in any order. Writing costs least while bytes that have
   * just arrived are still in the processor's cache (docs/performance-history.md). Where nothing is stored,
   * zeroes are read.
   * @throws the file system's error (ENOSPC, EIO), with `code`
   */
  writeNow(hostOffset: number, data: Uint8Array): void;
  /**
   * Extends the file to at least `hostEnd`, so that zeroes left out at the end of a cluster can be read.
   * @throws the file system's error, with `code`
   */
  reach(hostEnd: number): void;
  /** Records what the next clusters are, in ascending guest order. */
  addRun(run: ClusterRun): void;
  /**
   * Completes the image: data reaches stable storage, then the tables, then the header last (`sync: false`
   * leaves out the flushing).
   * @returns bytes of guest data in the file
   */
  finish(options: { readonly sync: boolean }): Promise<{ readonly storedBytes: number }>;
  close(): Promise<void>;
}

/** A writer whose file the next run can continue, if this run is killed. */
export interface ResumableWriter extends ImageWriter {
  /** Has all data that was stored so far in the file, with `sync` on stable storage. */
  settle(options: { readonly sync: boolean }): Promise<void>;
  /** Bytes of the file. */
  size(): Promise<number>;
  /**
   * After the runs that an earlier run has stored were recorded: removes everything else from the file, so
   * that it is as new behind them.
   * @param position the guest cluster behind the last recorded one
   * @returns the rank of the next cluster that is set aside for storing
   */
  cutBehind(position: number): Promise<number>;
}

/** Reads one image file by itself, without its backing file. */
export interface ImageReader {
  readonly geometry: Geometry;
  readonly format: ImageFormat;
  /**
   * What this image itself defines, in guest order. Gaps are left to its parent.
   * @param onDamage called for each invalid entry, which is then left out
   * @throws {DamageError} an entry is invalid and there is no `onDamage`
   */
  runs(onDamage?: OnDamage): AsyncIterable<ClusterRun>;
  /**
   * Like {@link runs}, many together. Those before an invalid entry come before `onDamage` is called.
   */
  runBlocks?(onDamage?: OnDamage): AsyncIterable<readonly ClusterRun[]>;
  /**
   * Fills `target` from byte `hostOffset` of the file.
   * @throws {DamageError} the file ends too early
   */
  readHost(hostOffset: number, target: Uint8Array): Promise<void>;
  close(): Promise<void>;
}
