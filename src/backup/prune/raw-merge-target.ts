import { closeAll } from "../base/in-parallel.js";
import type { DigestedRun } from "../chain/checked-image.js";
import type { Layer } from "../chain/layer.js";
import type { VisibleExtent } from "../chain/overlay.js";
import {
  ALL_SUBCLUSTERS,
  type ClusterRun,
  dataBytesOf,
  dataStretches,
  type Geometry,
  maskStretches,
} from "../image/image.js";
import { ImageFile } from "../image/image-file.js";
import { RawWriter, writeMap } from "../image/raw-writer.js";
import { RunCursor } from "../image/run-cursor.js";
import { RunList } from "../image/run-list.js";
import { PatchWriter } from "../repository/raw-patch.js";
import { type CopyList, FROM_ZEROES } from "./copy-list.js";
import type { MergeTarget, MixedCluster, Placed } from "./merge-target.js";
import type { Origin } from "./merge-walk.js";
import { originOf } from "./merge-walk.js";

interface RawInPlaceOptions {
  /** Its cluster size is the base's. */
  readonly geometry: Geometry;
  /** Top first. */
  readonly layers: readonly Layer[];
  /** The layer whose image takes the others' clusters. */
  readonly base: Layer;
  /** Gets the copies that overwrite parts of the image. */
  readonly overwrites: CopyList;
  /** Path of the patch: bytes that may be written only while no point is read. */
  readonly patchPath: string;
  /** Path of the new map; undefined if the image becomes complete. */
  readonly mapPath: string | undefined;
}

/** Bytes of the disk. */
interface Stretch {
  readonly offset: number;
  readonly length: number;
}

/**
 * An existing raw image that takes the clusters that it lacks. Each byte of the disk has only one position in
 * a raw image, so new data can't be written beside the old. While disks are merged the image does not change.
 * What will be written is listed in two files:
 *
 *     patch        bytes that replace data of the image in a cluster of which the staying point shows a part.
 *                  One digest covers all data that the image has in the cluster, so these bytes are written
 *                  in the phase `publish`, in which the digest file is replaced too
 *     overwrites   all other bytes: they are written in the phase `overwrite`, when the dropped points no
 *                  longer count as points
 */
export class RawInPlaceTarget implements MergeTarget {
  readonly #options: RawInPlaceOptions;
  readonly #runs: RunList;
  readonly #covered: Covered;
  readonly #patch: PatchWriter;
  writtenBytes = 0;
  storedBytes = 0;

  private constructor(options: RawInPlaceOptions, patch: PatchWriter) {
    this.#options = options;
    this.#runs = new RunList({ geometry: options.geometry, firstHostCluster: 0 });
    this.#covered = new Covered(options.base);
    this.#patch = patch;
  }

  static async create(options: RawInPlaceOptions): Promise<RawInPlaceTarget> {
    return new RawInPlaceTarget(options, await PatchWriter.create(options.patchPath));
  }

  async keep(cluster: number, count: number, from: Origin): Promise<boolean> {
    if (from.layer !== this.#options.base) return false;
    this.#addWhole(cluster, count);
    return true;
  }

  async store(cluster: number, count: number, from: Origin): Promise<void> {
    const { geometry } = this.#options;
    const offset = cluster * geometry.clusterSize;
    this.#overwrite(from, { offset, length: dataBytesOf({ kind: "data", cluster, count }, geometry) });
    this.#addWhole(cluster, count);
  }

  async place(cluster: number, count: number, from: Origin): Promise<readonly Placed[]> {
    await this.store(cluster, count, from);
    return [{ cluster, count, to: undefined }];
  }

  async storeMixed(mixed: MixedCluster): Promise<void> {
    const { geometry } = this.#options;
    const { cluster, pieces, dataMask, zeroMask } = mixed;
    const hostOffset = dataMask === 0 ? 0 : cluster * geometry.clusterSize;
    const run: ClusterRun = { kind: "partial", cluster, count: 1, hostOffset, dataMask, zeroMask };
    this.#runs.append(run);
    this.storedBytes += dataBytesOf(run, geometry);
    const isOfBase = ({ state, from }: VisibleExtent): boolean =>
      state === "data" && from?.layer === this.#options.base;
    const showsBase = pieces.some(isOfBase);
    for (const piece of pieces) {
      if (piece.state === "clean" || isOfBase(piece)) continue;
      const covered = await this.#covered.in(piece.offset, piece.offset + piece.length);
      if (showsBase && covered.length > 0) this.#patchPiece(mixed, piece);
      else if (piece.state === "data") this.#overwrite(originOf(piece), piece);
      else for (const stretch of covered) this.#erase(stretch);
    }
  }

  zero(cluster: number, count: number): void {
    this.#runs.append({ kind: "zero", cluster, count });
  }

  async erase(cluster: number, count: number): Promise<void> {
    const offset = cluster * this.#options.geometry.clusterSize;
    const end = offset + dataBytesOf({ kind: "data", cluster, count }, this.#options.geometry);
    for (const stretch of await this.#covered.in(offset, end)) this.#erase(stretch);
  }

  async finish({ sync }: { readonly sync: boolean }): Promise<undefined> {
    const { mapPath, geometry } = this.#options;
    if (mapPath !== undefined) {
      const map = await ImageFile.create(mapPath);
      try {
        await writeMap(map, this.#runs, geometry);
        if (sync) await map.sync();
      } finally {
        await map.close();
      }
    }
    await this.#patch.finish(geometry.virtualSize, { sync });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await closeAll(this.#covered, this.#patch);
  }

  #addWhole(cluster: number, count: number): void {
    const hostOffset = cluster * this.#options.geometry.clusterSize;
    this.#runs.append({ kind: "data", cluster, count, hostOffset });
    this.storedBytes += dataBytesOf({ kind: "data", cluster, count }, this.#options.geometry);
  }

  #overwrite({ layer, run }: Origin, { offset, length }: Stretch): void {
    const from = run.hostOffset + offset - run.cluster * layer.geometry.clusterSize;
    const { layers, overwrites } = this.#options;
    overwrites.add({ layer: layers.indexOf(layer), from, to: offset, length });
    this.writtenBytes += length;
  }

  #erase({ offset, length }: Stretch): void {
    this.#options.overwrites.add({ layer: FROM_ZEROES, from: offset, to: offset, length });
  }

  #patchPiece({ cluster, bytes }: MixedCluster, { offset, length }: Stretch): void {
    const at = offset - cluster * this.#options.geometry.clusterSize;
    this.#patch.add(offset, bytes.subarray(at, at + length));
    this.writtenBytes += length;
  }
}

/** Finds the stretches of data in an image. Callers must ask in ascending order. */
class Covered {
  readonly #geometry: Geometry;
  readonly #runs: RunCursor<DigestedRun>;

  constructor(layer: Layer) {
    this.#geometry = layer.geometry;
    // The merge walks over the layer too, and reports its damage.
    this.#runs = new RunCursor(layer.runBlocks(() => undefined));
  }

  async close(): Promise<void> {
    await this.#runs.close();
  }

  /** The stretches of data from byte `start` up to `end`. */
  async in(start: number, end: number): Promise<Stretch[]> {
    const { clusterSize, virtualSize } = this.#geometry;
    const found: Stretch[] = [];
    for (let at = start; at < end; ) {
      const run = await this.#runs.seek(Math.floor(at / clusterSize));
      if (!run) break;
      const first = run.cluster * clusterSize;
      for (const { offset, length } of stretchesOf(run, clusterSize)) {
        const from = Math.max(start, first + offset);
        const to = Math.min(end, first + offset + length, virtualSize);
        if (from < to) found.push({ offset: from, length: to - from });
      }
      at = first + run.count * clusterSize;
    }
    return found;
  }
}

/** The stretches of data in a run, with offsets from the beginning of the run. */
function stretchesOf(run: DigestedRun, clusterSize: number): Stretch[] {
  switch (run.kind) {
    case "zero":
      return [];
    case "data":
      return [{ offset: 0, length: run.count * clusterSize }];
    case "partial":
      return run.dataMask === ALL_SUBCLUSTERS
        ? [{ offset: 0, length: clusterSize }]
        : maskStretches(run.dataMask, clusterSize);
    default:
      return run satisfies never;
  }
}

/** A new raw image, with a map unless it is complete. */
export class NewRawTarget implements MergeTarget {
  readonly #writer: RawWriter;
  readonly #zeroes: Buffer;
  writtenBytes = 0;

  private constructor(writer: RawWriter) {
    this.#writer = writer;
    this.#zeroes = Buffer.alloc(writer.geometry.clusterSize);
  }

  static async create(path: string, geometry: Geometry, mapPath: string | undefined): Promise<NewRawTarget> {
    return new NewRawTarget(await RawWriter.create(path, { geometry, mapPath }));
  }

  get storedBytes(): number {
    return this.writtenBytes;
  }

  async keep(): Promise<boolean> {
    return false;
  }

  async store(cluster: number, count: number, _from: Origin, bytes: Buffer): Promise<void> {
    const { clusterSize } = this.#writer.geometry;
    const hostOffset = cluster * clusterSize;
    for (let at = 0; at < bytes.length; at += clusterSize) {
      const data = bytes.subarray(at, at + clusterSize);
      // A raw layer without digests counts as data throughout. Its clusters of zeroes stay holes.
      if (data.equals(this.#zeroes.subarray(0, data.length))) continue;
      this.#writer.writeNow(hostOffset + at, data);
      this.writtenBytes += data.length;
    }
    this.#writer.addRun({ kind: "data", cluster, count, hostOffset });
  }

  async storeMixed({ cluster, dataMask, zeroMask, bytes }: MixedCluster): Promise<void> {
    const { geometry } = this.#writer;
    const start = cluster * geometry.clusterSize;
    for (const { offset, length } of dataStretches({ cluster, dataMask }, geometry)) {
      this.#writer.writeNow(start + offset, bytes.subarray(offset, offset + length));
      this.writtenBytes += length;
    }
    const hostOffset = dataMask === 0 ? 0 : start;
    this.#writer.addRun({ kind: "partial", cluster, count: 1, hostOffset, dataMask, zeroMask });
  }

  zero(cluster: number, count: number): void {
    this.#writer.addRun({ kind: "zero", cluster, count });
  }

  async finish(options: { readonly sync: boolean }): Promise<undefined> {
    await this.#writer.finish(options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writer.close();
  }
}
