import type { Layer } from "../chain/layer.js";
import { ALL_SUBCLUSTERS, dataBytesOf, type Geometry, maskStretches } from "../image/image.js";
import type { NewFile } from "../image/new-file.js";
import { decompressCluster } from "../qcow2/decompress.js";
import { appendTables, type Backing } from "../qcow2/finish.js";
import { assertFits } from "../qcow2/layout.js";
import type { Qcow2Reader } from "../qcow2/reader.js";
import { ClusterUses } from "../qcow2/refcounts.js";
import { TableRunList } from "../qcow2/table-run-list.js";
import type { TableRun } from "../qcow2/tables.js";
import type { OpenLayers } from "./merge-disk.js";
import type { MergeTarget, MixedCluster } from "./merge-target.js";
import type { Origin } from "./merge-walk.js";
import type { CopyPlan } from "./plan-copies.js";

interface StoreTargetOptions extends OpenLayers {
  readonly plan: CopyPlan;
  readonly backing: Backing | undefined;
  readonly file: NewFile;
}

/** A stretch that the store copies, and where it gets in the new image; in clusters. */
interface PlacedStretch {
  readonly first: number;
  readonly end: number;
  readonly to: number;
}

/** The ends of a part of what is copied that the disk shows: places in the new image, and guest clusters. */
interface CopiedEnds {
  first: { readonly host: number; readonly guest: number };
  last: { readonly host: number; readonly guest: number };
}

/** The ends of so many bytes of what was copied are compared. */
const COMPARED_BYTES = 32 * 1024 * 1024;

/**
 * A new qcow2 image in an object store. The clusters that the store copies are found where it puts them. All
 * others are written before and behind them, packed, in guest order.
 *
 *     |header|written|copied             |copied    |written        |tables|
 */
export class StoreMergeTarget implements MergeTarget {
  readonly #options: StoreTargetOptions;
  readonly #geometry: Geometry;
  readonly #placed: ReadonlyMap<Layer, readonly PlacedStretch[]>;
  readonly #runs = new TableRunList();
  readonly #uses = new ClusterUses();
  /** By where the part begins in the new image. */
  readonly #ends = new Map<number, CopiedEnds>();
  /** Where what is copied begins and ends, in clusters. */
  readonly #copies: { readonly first: number; readonly end: number };
  /** The next cluster to be written. */
  #next = 1;
  /** Where the next stream goes if it fits, and the end of that cluster; in bytes. */
  #streams = { tail: 0, end: 0 };
  #hasStreams = false;
  writtenBytes = 0;
  storedBytes = 0;

  constructor(options: StoreTargetOptions) {
    this.#options = options;
    const { plan, layers } = options;
    this.#geometry = plan.geometry;
    const placed = new Map<Layer, PlacedStretch[]>();
    let to = plan.head;
    for (const { image, first, end } of plan.stretches) {
      const layer = layers[image] as Layer;
      placed.set(layer, [...(placed.get(layer) ?? []), { first, end, to }]);
      to += end - first;
    }
    this.#placed = placed;
    this.#copies = { first: plan.head, end: to };
  }

  /** Guest clusters at the ends of all that was copied, in order. */
  get copiedEnds(): number[] {
    const ends = [...this.#ends.values()].flatMap(({ first, last }) => [first.guest, last.guest]);
    return [...new Set(ends)].sort((one, other) => one - other);
  }

  alike(cluster: number, count: number, { layer, run }: Origin): number {
    const image = this.#options.images.get(layer);
    if (!image || run.kind !== "data") return count;
    if (image.isCompressed(run.hostOffset)) return 1;
    const host = this.#hostOf(cluster, run);
    const next = this.#nextStretch(layer, host);
    if (!next) return count;
    return Math.min(count, next.first <= host ? next.end - host : next.first - host);
  }

  async keep(cluster: number, count: number, { layer, run }: Origin): Promise<boolean> {
    const image = this.#options.images.get(layer);
    if (!image || run.kind !== "data" || layer.geometry.clusterSize !== this.#geometry.clusterSize)
      return false;
    if (image.isCompressed(run.hostOffset)) return await this.#keepStream(cluster, layer, image);
    const host = this.#hostOf(cluster, run);
    const stretch = this.#stretchWith(layer, host, host + count);
    if (!stretch) return false;
    const hostCluster = stretch.to + host - stretch.first;
    this.#add({ cluster, count, hostCluster, dataMask: ALL_SUBCLUSTERS, zeroMask: 0 });
    this.storedBytes += dataBytesOf({ kind: "data", cluster, count }, this.#geometry);
    this.#noteEnds(cluster, count, hostCluster, stretch);
    return true;
  }

  async #keepStream(cluster: number, layer: Layer, image: Qcow2Reader): Promise<boolean> {
    if (image.header.compression !== this.#options.plan.compression) return false;
    const { clusterSize } = this.#geometry;
    const { hostOffset, length } = await image.streamOf(cluster);
    const first = Math.floor(hostOffset / clusterSize);
    const stretch = this.#stretchWith(layer, first, Math.ceil((hostOffset + length) / clusterSize));
    if (!stretch) return false;
    const shift = stretch.to - stretch.first;
    this.#addStream(cluster, hostOffset + shift * clusterSize, length);
    this.#noteEnds(cluster, 1, first + shift, stretch);
    return true;
  }

  async store(cluster: number, count: number, from: Origin, bytes: Buffer): Promise<void> {
    const { clusterSize } = this.#geometry;
    for (let i = 0; i < count; i += 1) {
      const data = bytes.subarray(i * clusterSize, (i + 1) * clusterSize);
      const stream = await this.#streamOf(cluster + i, from, data);
      if (stream) {
        const hostOffset = this.#allocateStream(stream.length);
        await this.#options.file.write(stream, hostOffset);
        this.writtenBytes += stream.length;
        this.#addStream(cluster + i, hostOffset, stream.length);
        continue;
      }
      const hostCluster = this.#allocate();
      await this.#options.file.write(data, hostCluster * clusterSize);
      this.#add({ cluster: cluster + i, count: 1, hostCluster, dataMask: ALL_SUBCLUSTERS, zeroMask: 0 });
      this.writtenBytes += data.length;
      this.storedBytes += data.length;
    }
  }

  async storeMixed({ cluster, dataMask, zeroMask, bytes }: MixedCluster): Promise<void> {
    const { clusterSize } = this.#geometry;
    let hostCluster = 0;
    if (dataMask !== 0) {
      hostCluster = this.#allocate();
      for (const { offset, length } of maskStretches(dataMask, clusterSize)) {
        await this.#options.file.write(
          bytes.subarray(offset, offset + length),
          hostCluster * clusterSize + offset,
        );
        this.writtenBytes += length;
      }
    }
    this.#add({ cluster, count: 1, hostCluster, dataMask, zeroMask });
    this.storedBytes += dataBytesOf({ kind: "partial", cluster, count: 1, dataMask }, this.#geometry);
  }

  zero(cluster: number, count: number): void {
    this.#runs.append({ cluster, count, hostCluster: 0, dataMask: 0, zeroMask: ALL_SUBCLUSTERS });
  }

  async finish(): Promise<undefined> {
    const { plan, file, backing } = this.#options;
    const geometry = this.#geometry;
    const extended = this.#runs.hasPartial;
    if (extended) assertFits(geometry, true);
    const hasCopies = this.#copies.end > this.#copies.first;
    const unfinished = {
      ...{ geometry, backing, extended },
      compression: this.#hasStreams ? plan.compression : undefined,
      dataEnd: hasCopies ? Math.max(this.#next, this.#copies.end) : this.#next,
      runs: this.#runs,
      uses: this.#uses.inOrder(),
    };
    const header = await appendTables(file, unfinished, { sync: true });
    await file.write(header, 0);
    await file.finish({ sync: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#options.file.close();
  }

  /** Where in its file a cluster of an uncompressed run is. */
  #hostOf(cluster: number, run: { readonly hostOffset: number; readonly cluster: number }): number {
    return run.hostOffset / this.#geometry.clusterSize + cluster - run.cluster;
  }

  #stretchWith(layer: Layer, first: number, end: number): PlacedStretch | undefined {
    const next = this.#nextStretch(layer, first);
    return next && next.first <= first && end <= next.end ? next : undefined;
  }

  /** The first stretch of a layer that ends behind a cluster of its file. */
  #nextStretch(layer: Layer, cluster: number): PlacedStretch | undefined {
    const stretches = this.#placed.get(layer) ?? [];
    let [low, high] = [0, stretches.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((stretches[middle]?.end ?? 0) > cluster) high = middle;
      else low = middle + 1;
    }
    return stretches[low];
  }

  #allocate(): number {
    // What does not fit before what is copied goes behind it.
    if (this.#next === this.#copies.first && this.#copies.end > this.#copies.first)
      this.#next = this.#copies.end;
    this.#next += 1;
    return this.#next - 1;
  }

  #allocateStream(bytes: number): number {
    const { tail, end } = this.#streams;
    const { clusterSize } = this.#geometry;
    if (tail + bytes > end) {
      const next = this.#allocate() * clusterSize;
      // A stream may continue in the next cluster.
      this.#streams = { tail: next === end ? tail : next, end: next + clusterSize };
    }
    const offset = this.#streams.tail;
    this.#streams.tail += bytes;
    return offset;
  }

  /** The compressed stream of a cluster, if it yields this data and the image can hold it. */
  async #streamOf(cluster: number, { layer, run }: Origin, data: Buffer): Promise<Buffer | undefined> {
    const image = this.#options.images.get(layer);
    const { clusterSize } = this.#geometry;
    const { compression } = this.#options.plan;
    if (!image?.isCompressed(run.hostOffset) || image.geometry.clusterSize !== clusterSize) return undefined;
    if (compression === undefined || image.header.compression !== compression) return undefined;
    // Tables give the length of a stream in whole sectors, so it may seem longer than a cluster.
    if ((await image.streamOf(cluster)).length >= clusterSize) return undefined;
    const stream = await image.readStream(cluster);
    const yields = await decompressCluster(stream, compression, clusterSize, { blocking: true });
    return yields.equals(data) ? stream : undefined;
  }

  #add(run: TableRun & { readonly streamBytes?: undefined }): void {
    this.#runs.append(run);
    if (run.dataMask === 0) return;
    for (let i = 0; i < run.count; i += 1) this.#uses.claim(run.hostCluster + i, true);
  }

  #addStream(cluster: number, hostOffset: number, streamBytes: number): void {
    this.#hasStreams = true;
    this.storedBytes += streamBytes;
    this.#runs.append({ cluster, count: 1, hostOffset, streamBytes });
    const { clusterSize } = this.#geometry;
    const last = Math.floor((hostOffset + streamBytes - 1) / clusterSize);
    for (let i = Math.floor(hostOffset / clusterSize); i <= last; i += 1) this.#uses.share(i);
  }

  /** Notes which guest clusters lie at the ends of what was copied. */
  #noteEnds(guest: number, count: number, host: number, { to }: PlacedStretch): void {
    const perPart = COMPARED_BYTES / this.#geometry.clusterSize;
    for (let i = 0; i < count; ) {
      const part = to + Math.floor((host + i - to) / perPart) * perPart;
      const next = Math.min(count, part + perPart - host);
      const first = { host: host + i, guest: guest + i };
      const last = { host: host + next - 1, guest: guest + next - 1 };
      const known = this.#ends.get(part);
      if (!known) this.#ends.set(part, { first, last });
      else {
        if (first.host < known.first.host) known.first = first;
        if (last.host > known.last.host) known.last = last;
      }
      i = next;
    }
  }
}
