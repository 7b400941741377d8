import type { Layer } from "../chain/layer.js";
import type { VisibleExtent } from "../chain/overlay.js";
import {
  ALL_SUBCLUSTERS,
  type ClusterRun,
  dataBytesOf,
  type Geometry,
  maskStretches,
} from "../image/image.js";
import type { Guard } from "../image/image-file.js";
import { RunCursor } from "../image/run-cursor.js";
import { Qcow2Editor } from "../qcow2/editor.js";
import type { Backing } from "../qcow2/finish.js";
import type { Qcow2Reader } from "../qcow2/reader.js";
import type { CopyList } from "./copy-list.js";
import type { MergeTarget, MixedCluster, Placed } from "./merge-target.js";
import { maskOf, type Origin } from "./merge-walk.js";

interface Qcow2TargetOptions {
  readonly geometry: Geometry;
  readonly backing: Backing | undefined;
  /** Top first. */
  readonly layers: readonly Layer[];
  /** The images of the qcow2 layers. */
  readonly images: ReadonlyMap<Layer, Qcow2Reader>;
  /** The layer whose image takes the others' clusters; undefined: a new image takes all clusters. */
  readonly base: Layer | undefined;
  /** Path of the base's image, or of the new one. */
  readonly path: string;
  /** Gets the copies that overwrite clusters of the base. */
  readonly overwrites: CopyList;
  readonly guard?: Guard | undefined;
}

/** An existing qcow2 image that takes the clusters that it lacks, or a new qcow2 image. */
export class Qcow2Target implements MergeTarget {
  readonly #options: Qcow2TargetOptions;
  readonly #editor: Qcow2Editor;
  readonly #slots: Slots | undefined;
  #compression: ReturnType<typeof compressionOf> | undefined;
  #hasStreams = false;
  writtenBytes = 0;
  storedBytes = 0;

  private constructor(options: Qcow2TargetOptions, editor: Qcow2Editor) {
    this.#options = options;
    this.#editor = editor;
    const image = options.base && options.images.get(options.base);
    this.#slots = image && new Slots(image);
  }

  static async create(options: Qcow2TargetOptions): Promise<Qcow2Target> {
    const editor = options.base
      ? await Qcow2Editor.open(options.path, options)
      : await Qcow2Editor.create(options.path, options);
    return new Qcow2Target(options, editor);
  }

  async keep(cluster: number, count: number, from: Origin): Promise<boolean> {
    const image = this.#options.images.get(from.layer);
    if (!image || from.layer !== this.#options.base || from.run.kind !== "data") return false;
    const { clusterSize } = this.#editor.geometry;
    if (image.isCompressed(from.run.hostOffset)) {
      for (let i = 0; i < count; i += 1) {
        const { hostOffset, length } = await image.streamOf(cluster + i);
        this.#addStream(cluster + i, hostOffset, length);
      }
      return true;
    }
    const hostCluster = from.run.hostOffset / clusterSize + cluster - from.run.cluster;
    this.#addWhole(cluster, count, hostCluster);
    return true;
  }

  async store(cluster: number, count: number, from: Origin, bytes: Buffer): Promise<void> {
    const { clusterSize } = this.#editor.geometry;
    for (let i = 0; i < count; i += 1) {
      const data = bytes.subarray(i * clusterSize, (i + 1) * clusterSize);
      await this.#storeOne(cluster + i, from, data);
    }
  }

  async place(cluster: number, count: number, from: Origin): Promise<readonly Placed[] | undefined> {
    if (this.#options.images.get(from.layer)?.isCompressed(from.run.hostOffset)) return undefined;
    const { clusterSize } = this.#editor.geometry;
    const placed: Placed[] = [];
    for (let i = 0; i < count; i += 1) {
      const to = await this.#placeOne(cluster + i, from, clusterSize);
      const last = placed.at(-1);
      const next = last?.to === undefined ? undefined : last.to + last.count * clusterSize;
      if (last && to === next) placed[placed.length - 1] = { ...last, count: last.count + 1 };
      else placed.push({ cluster: cluster + i, count: 1, to });
    }
    return placed;
  }

  async storeMixed(mixed: MixedCluster): Promise<void> {
    const { clusterSize } = this.#editor.geometry;
    const { cluster, dataMask, zeroMask, bytes } = mixed;
    let hostCluster = 0;
    if (dataMask !== 0) {
      const slot = await this.#slotFor(mixed);
      const hostOffset = slot ?? this.#editor.allocate();
      hostCluster = hostOffset / clusterSize;
      if (slot === undefined) {
        for (const { offset, length } of maskStretches(dataMask, clusterSize)) {
          await this.#editor.write(hostOffset + offset, bytes.subarray(offset, offset + length));
          this.writtenBytes += length;
        }
      } else this.#overwritePieces(mixed, slot);
    }
    this.#editor.addRun({ cluster, count: 1, hostCluster, dataMask, zeroMask });
    this.storedBytes += dataBytesOf({ kind: "partial", cluster, count: 1, dataMask }, this.#editor.geometry);
  }

  zero(cluster: number, count: number): void {
    this.#editor.addRun({ cluster, count, hostCluster: 0, dataMask: 0, zeroMask: ALL_SUBCLUSTERS });
  }

  async finish({ sync }: { readonly sync: boolean }): Promise<Buffer | undefined> {
    const compression = this.#hasStreams ? await this.#method() : undefined;
    const header = await this.#editor.finish({ sync, compression });
    if (this.#options.base) return header;
    await this.#editor.write(0, header);
    if (sync) await this.#editor.sync();
    return undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#editor.close();
  }

  async #storeOne(cluster: number, from: Origin, data: Buffer): Promise<void> {
    const stream = await this.#streamFrom(cluster, from);
    if (stream) {
      const hostOffset = this.#editor.allocateStream(stream.length);
      await this.#editor.write(hostOffset, stream);
      this.writtenBytes += stream.length;
      this.#addStream(cluster, hostOffset, stream.length);
      return;
    }
    const to = await this.#placeOne(cluster, from, data.length);
    if (to !== undefined) await this.#editor.write(to, data);
  }

  /** @returns where the cluster's bytes go now; undefined: their copy is listed */
  async #placeOne(cluster: number, from: Origin, length: number): Promise<number | undefined> {
    const { clusterSize } = this.#editor.geometry;
    const slot = await this.#slots?.at(cluster);
    const hostOffset = slot?.hostOffset ?? this.#editor.allocate();
    if (slot) this.#overwrite(from, cluster * clusterSize, length, hostOffset);
    this.#addWhole(cluster, 1, hostOffset / clusterSize);
    this.writtenBytes += length;
    return slot ? undefined : hostOffset;
  }

  /**
   * The host offset of the base's own cluster, if the other layers' data may be written there. If the staying
   * point shows a part of the base's cluster, one digest covers all data that the base has in it. So none of
   * that data may change before the new tables take effect.
   */
  async #slotFor(mixed: MixedCluster): Promise<number | undefined> {
    if (mixed.blended) return undefined;
    const { clusterSize } = this.#editor.geometry;
    const slot = await this.#slots?.at(mixed.cluster);
    if (!slot) return undefined;
    const isBase = (piece: VisibleExtent): boolean =>
      piece.state === "data" && piece.from?.layer === this.#options.base;
    if (!mixed.pieces.some(isBase)) return slot.hostOffset;
    const others = mixed.pieces.filter((piece) => piece.state === "data" && !isBase(piece));
    const start = mixed.cluster * clusterSize;
    return (maskOf(others, start, clusterSize) & slot.dataMask) === 0 ? slot.hostOffset : undefined;
  }

  /** The compressed stream of a cluster, if this image can hold it unchanged. */
  async #streamFrom(cluster: number, { layer, run }: Origin): Promise<Buffer | undefined> {
    const image = this.#options.images.get(layer);
    if (!image?.isCompressed(run.hostOffset)) return undefined;
    if (image.header.compression !== (await this.#method())) return undefined;
    if (image.geometry.clusterSize !== this.#editor.geometry.clusterSize) return undefined;
    // Tables give the length of a stream in whole sectors, so it may seem longer than a cluster.
    const { length } = await image.streamOf(cluster);
    return length < this.#editor.geometry.clusterSize ? await image.readStream(cluster) : undefined;
  }

  /**
   * Lists the copies of the pieces that come from other images. The base's own pieces are in the slot
   * already.
   */
  #overwritePieces({ cluster, pieces }: MixedCluster, slot: number): void {
    const start = cluster * this.#editor.geometry.clusterSize;
    for (const { state, from, offset, length } of pieces) {
      if (state !== "data" || !from || from.run.kind === "zero" || from.layer === this.#options.base)
        continue;
      this.#overwrite({ layer: from.layer, run: from.run }, offset, length, slot + offset - start);
      this.writtenBytes += length;
    }
  }

  #overwrite({ layer, run }: Origin, offset: number, length: number, to: number): void {
    const from = run.hostOffset + offset - run.cluster * layer.geometry.clusterSize;
    this.#options.overwrites.add({ layer: this.#options.layers.indexOf(layer), from, to, length });
  }

  /** Asked for only where a cluster is compressed, since all tables are read for it. */
  #method(): ReturnType<typeof compressionOf> {
    this.#compression ??= compressionOf(this.#options);
    return this.#compression;
  }

  #addWhole(cluster: number, count: number, hostCluster: number): void {
    this.#editor.addRun({ cluster, count, hostCluster, dataMask: ALL_SUBCLUSTERS, zeroMask: 0 });
    this.storedBytes += dataBytesOf({ kind: "data", cluster, count }, this.#editor.geometry);
  }

  #addStream(cluster: number, hostOffset: number, streamBytes: number): void {
    this.#hasStreams = true;
    this.#editor.addRun({ cluster, count: 1, hostOffset, streamBytes });
    this.storedBytes += streamBytes;
  }
}

/**
 * The compression method of the merged image; undefined if no layer has compressed clusters. An image has
 * only one method, and the base's streams stay as they are, so the base's method comes first.
 */
async function compressionOf({
  layers,
  images,
  base,
}: Qcow2TargetOptions): Promise<Qcow2Reader["header"]["compression"] | undefined> {
  const order = base ? [base, ...layers.filter((layer) => layer !== base)] : layers;
  for (const layer of order) {
    const image = images.get(layer);
    if (!image) continue;
    for await (const run of image.runs()) {
      if (run.kind === "data" && image.isCompressed(run.hostOffset)) return image.header.compression;
    }
  }
  return undefined;
}

/** Finds clusters in an image. Callers must ask in ascending order. */
class Slots {
  readonly #image: Qcow2Reader;
  readonly #runs: RunCursor<ClusterRun>;

  constructor(image: Qcow2Reader) {
    this.#image = image;
    this.#runs = new RunCursor(image.runBlocks());
  }

  /**
   * The host offset of a cluster, and the subclusters with data there, visible or not; undefined if the
   * cluster is not stored, or is compressed.
   */
  async at(cluster: number): Promise<{ readonly hostOffset: number; readonly dataMask: number } | undefined> {
    const run = await this.#runs.seek(cluster);
    if (!run || run.cluster > cluster || run.kind === "zero" || run.hostOffset === 0) return undefined;
    if (this.#image.isCompressed(run.hostOffset)) return undefined;
    const hostOffset = run.hostOffset + (cluster - run.cluster) * this.#image.geometry.clusterSize;
    return { hostOffset, dataMask: run.kind === "partial" ? run.dataMask : ALL_SUBCLUSTERS };
  }
}
