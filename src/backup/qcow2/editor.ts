import assert from "node:assert/strict";
import type { Geometry } from "../image/image.js";
import { type Guard, ImageFile } from "../image/image-file.js";
import type { CompressionMethod } from "./can-compress.js";
import { appendTables, type Backing, createQcow2File } from "./finish.js";
import { decodeRefcount, decodeRefcountTableEntry, ENTRY_BYTES } from "./format.js";
import { assertFits } from "./layout.js";
import { Qcow2File } from "./open.js";
import { ClusterUses } from "./refcounts.js";
import { TableRunList } from "./table-run-list.js";
import type { TableRun } from "./tables.js";

/** What the image will be. */
interface EditedImage {
  readonly geometry: Geometry;
  readonly backing: Backing | undefined;
  /** For an existing image. */
  readonly guard?: Guard | undefined;
}

/** Unused clusters of the file. */
interface FreeRange {
  first: number;
  readonly end: number;
}

/**
 * Gives one of our images new contents without changing the old. Data goes into unused clusters or behind the
 * end, new tables go behind all data, and everything that the old header refers to stays as it is. The new
 * state counts only once the new header is written at byte 0. Until then, truncating the file to its old
 * length undoes everything.
 *
 *     before   |header|  data |old tables|  free  | data |
 *     after    |HEADER|  data |   free   |new data| data |new data|new tables|
 *
 * The next edit finds the space of old tables and unreferenced clusters again, by their refcounts.
 */
export class Qcow2Editor implements AsyncDisposable {
  readonly geometry: Geometry;
  readonly #file: ImageFile;
  readonly #image: EditedImage;
  readonly #runs = new TableRunList();
  readonly #uses = new ClusterUses();
  readonly #free: FreeRange[];
  /** The first cluster behind all clusters in use. */
  #end: number;
  /** Where the next stream goes if it fits, and the end of that cluster; in bytes. */
  #streams = { tail: 0, end: 0 };

  private constructor(file: ImageFile, image: EditedImage, free: FreeRange[], end: number) {
    this.geometry = image.geometry;
    this.#file = file;
    this.#image = image;
    this.#free = free;
    this.#end = end;
  }

  /**
   * Begins a new image.
   * @throws {UsageError} the geometry or the backing file's name is beyond what qcow2 can hold
   * @throws the file system's error: EEXIST where there is something at `path`
   */
  static async create(path: string, image: EditedImage): Promise<Qcow2Editor> {
    return new Qcow2Editor(await createQcow2File(path, image), image, [], 1);
  }

  /**
   * Begins with an existing image of the same cluster size. Its refcounts are trusted, so run `checkQcow2`
   * first.
   * @throws {DamageError} the image can't be read
   */
  static async open(path: string, image: EditedImage): Promise<Qcow2Editor> {
    const free = await freeRanges(path);
    const file = await ImageFile.openForWriting(path, image.guard);
    return new Qcow2Editor(file, image, free, Math.ceil((await file.size()) / image.geometry.clusterSize));
  }

  /** @returns the host offset of an unused cluster */
  allocate(): number {
    const range = this.#free[0];
    if (!range) {
      this.#end += 1;
      return (this.#end - 1) * this.geometry.clusterSize;
    }
    range.first += 1;
    if (range.first === range.end) this.#free.shift();
    return (range.first - 1) * this.geometry.clusterSize;
  }

  /** @returns the host offset of space for a compressed stream, which is less than a cluster long */
  allocateStream(bytes: number): number {
    assert(bytes < this.geometry.clusterSize, `a stream of ${bytes} bytes is no gain`);
    const { tail, end } = this.#streams;
    if (tail + bytes > end) {
      const next = this.allocate();
      // A stream may continue in the next cluster.
      this.#streams = { tail: next === end ? tail : next, end: next + this.geometry.clusterSize };
    }
    const offset = this.#streams.tail;
    this.#streams.tail += bytes;
    return offset;
  }

  /** @throws the file system's error, with `code` */
  async write(hostOffset: number, data: Uint8Array): Promise<void> {
    if (this.#image.guard) await this.#image.guard();
    this.#file.writeNow(data, hostOffset);
  }

  /**
   * Records what the next clusters are, in guest order. `hostOffset` must be that of existing or written
   * data.
   */
  addRun(run: TableRun): void {
    this.#runs.append(run);
    const { clusterSize } = this.geometry;
    if (run.streamBytes !== undefined) {
      const first = Math.floor(run.hostOffset / clusterSize);
      const last = Math.floor((run.hostOffset + run.streamBytes - 1) / clusterSize);
      for (let cluster = first; cluster <= last; cluster += 1) this.#uses.share(cluster);
    } else if (run.dataMask !== 0) {
      for (let i = 0; i < run.count; i += 1) this.#uses.claim(run.hostCluster + i, true);
    }
  }

  /**
   * Writes the new tables once all data has reached stable storage.
   * @param options.compression the method of the streams; left out if there are none
   * @returns the header that puts the tables into effect
   * @throws {UsageError} the disk is too large for tables with subclusters
   */
  async finish(options: {
    readonly sync: boolean;
    readonly compression?: CompressionMethod | undefined;
  }): Promise<Buffer> {
    const extended = this.#runs.hasPartial;
    if (extended) assertFits(this.geometry, true);
    const { compression } = options;
    const unfinished = {
      ...this.#image,
      extended,
      compression,
      dataEnd: this.#end,
      runs: this.#runs,
      uses: this.#uses.inOrder(),
    };
    return await appendTables(this.#file, unfinished, options);
  }

  sync(): Promise<void> {
    return this.#file.sync();
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** The clusters that a refcount block counts as unused. Clusters without a refcount block are left out. */
async function freeRanges(path: string): Promise<FreeRange[]> {
  const file = await Qcow2File.open(path);
  try {
    const { clusterSize, refcountTableOffset, refcountTableClusters, refcountOrder } = file.header;
    const perBlock = (clusterSize * 8) / 2 ** refcountOrder;
    const table = await file.readTable(refcountTableOffset, refcountTableClusters * clusterSize);
    const clusters = file.context.fileEnd / clusterSize;
    const free: FreeRange[] = [];
    for (let index = 0; index * perBlock < clusters && index < table.length / ENTRY_BYTES; index += 1) {
      const entry = decodeRefcountTableEntry(table, index, file.context);
      if (entry.kind !== "table") continue;
      const block = await file.readTable(entry.hostOffset, clusterSize);
      const end = Math.min(clusters, (index + 1) * perBlock);
      for (let cluster = index * perBlock; cluster < end; cluster += 1) {
        if (decodeRefcount(block, cluster - index * perBlock, refcountOrder) !== 0) continue;
        const last = free.at(-1);
        if (last?.end === cluster) free[free.length - 1] = { first: last.first, end: cluster + 1 };
        else free.push({ first: cluster, end: cluster + 1 });
      }
    }
    return free;
  } finally {
    await file.close();
  }
}
