import { damageIn, type OnDamage } from "../base/damage.js";
import { DamageError } from "../base/errors.js";
import {
  ALL_SUBCLUSTERS,
  type ClusterRun,
  clustersIn,
  type DataRun,
  type Geometry,
  type ImageReader,
  type PartialRun,
  type ZeroRun,
} from "../image/image.js";
import type { ReadOptions } from "../image/image-file.js";
import type { FilePlace } from "../image/readable-file.js";
import { decompressCluster, giveBackCluster } from "./decompress.js";
import {
  decodeL1Entry,
  decodeL2Entry,
  decodeRefcount,
  decodeRefcountTableEntry,
  ENTRY_BYTES,
  entriesInStep,
  firstAllocated,
  type L2Entry,
} from "./format.js";
import type { Qcow2Header } from "./header.js";
import { Qcow2File } from "./open.js";
import { TableBatches } from "./table-batches.js";

/** How many L2 tables are kept to look up compressed clusters: as many as there are places read at once. */
const CACHED_TABLES = { elsewhere: 4, blocking: 1 } as const;

export interface Qcow2ReadOptions extends ReadOptions {
  /**
   * Bytes of L2 tables that a walk over a file that is elsewhere asks for at once, and holds; default: one
   * table at a time.
   */
  readonly tableBytes?: number | undefined;
}

/** Runs that are handed over together. */
const BLOCK_RUNS = 256;

/** A run that may still grow. */
type Draft =
  | { -readonly [K in keyof DataRun]: DataRun[K] }
  | { -readonly [K in keyof ZeroRun]: ZeroRun[K] }
  | PartialRun;

/**
 * Reads the active state of a qcow2 image of any version and origin, without trusting it: a contradiction is
 * a `DamageError` that names the guest offset. It never opens the backing file; that is up to the caller.
 *
 * Compressed clusters have no place of their own in the file. They appear in an expanded area behind its end,
 * which exists for `readHost` only:
 *
 *     host offset   0                     fileEnd
 *                   | the file, as it is  | guest cluster 0 | guest cluster 1 | ...
 */
export class Qcow2Reader implements ImageReader, AsyncDisposable {
  readonly geometry: Geometry;
  readonly format = "qcow2";
  readonly header: Qcow2Header;
  readonly #file: Qcow2File;
  /** The entries that describe the virtual disk. */
  readonly #l1: Buffer;
  readonly #options: Qcow2ReadOptions;
  readonly #tables = new Map<number, Promise<Buffer | undefined>>();
  /** Buffer for a compressed stream. */
  #stream = Buffer.alloc(0);

  private constructor(file: Qcow2File, geometry: Geometry, l1: Buffer, options: Qcow2ReadOptions) {
    this.geometry = geometry;
    this.header = file.header;
    this.#file = file;
    this.#l1 = l1;
    this.#options = options;
  }

  /**
   * @throws {DamageError} the header is damaged
   * @throws {BackupError} the image uses features that can't be read
   * @throws the file system's error
   */
  static async open(place: FilePlace, options: Qcow2ReadOptions = {}): Promise<Qcow2Reader> {
    const file = await Qcow2File.open(place, options);
    try {
      const { virtualSize, clusterSize, l1Offset } = file.header;
      const geometry = { virtualSize, clusterSize };
      const entries = Math.ceil(clustersIn(geometry) / file.l2Entries);
      const l1 = await file.readTable(l1Offset, entries * ENTRY_BYTES);
      const tableBytes = typeof place === "string" ? undefined : options.tableBytes;
      return new Qcow2Reader(file, geometry, l1, { ...options, tableBytes });
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get path(): string {
    return this.#file.path;
  }

  /** The file's length in whole clusters, in bytes. Host offsets of compressed data begin there. */
  get fileEnd(): number {
    return this.#file.context.fileEnd;
  }

  async *runs(onDamage?: OnDamage): AsyncGenerator<ClusterRun> {
    for await (const block of this.runBlocks(onDamage)) yield* block;
  }

  async *runBlocks(onDamage?: OnDamage): AsyncGenerator<readonly ClusterRun[]> {
    this.#assertDistinctTables();
    let block: ClusterRun[] = [];
    let last: Draft | undefined;
    const batches = new TableBatches(this.#file, this.#l1, this.#options.tableBytes ?? 0);
    const taken = (): readonly ClusterRun[] => {
      const runs = last ? [...block, last] : block;
      block = [];
      last = undefined;
      return runs;
    };
    for (let index = 0; index < this.#l1.length / ENTRY_BYTES; index += 1) {
      const first = index * this.#file.l2Entries;
      const count = Math.min(this.#file.l2Entries, clustersIn(this.geometry) - first);
      let table: Buffer | undefined;
      try {
        table = (await batches.table(index)) ?? (await this.#readL2Table(index));
      } catch (error) {
        yield taken();
        this.#tell(error, { first, count }, onDamage);
      }
      if (table === undefined) continue;
      const { context } = this.#file;
      for (let i = 0; i < count; i += 1) {
        i = firstAllocated(table, i, count, context.extended);
        if (i === count) break;
        const entry = decodeL2Entry(table, i, context);
        if (entry.kind === "invalid") {
          yield taken();
          const error = this.#damage(first + i, `the L2 entry ${entry.problem}`);
          this.#tell(error, { first: first + i, count: 1 }, onDamage);
          continue;
        }
        const next = this.#run(first + i, entry);
        if (next === undefined) continue;
        if (last && continues(last, next, this.geometry.clusterSize)) {
          last.count += 1;
        } else {
          if (last) block.push(last);
          last = next;
          if (block.length >= BLOCK_RUNS) {
            yield block;
            block = [];
          }
        }
        if (last.kind === "data" && entry.kind === "standard") {
          const more = entriesInStep(table, i, count, context);
          last.count += more;
          i += more;
        }
      }
    }
    yield taken();
  }

  async readHost(hostOffset: number, target: Uint8Array): Promise<void> {
    const { fileEnd } = this.#file.context;
    if (hostOffset < fileEnd) await this.#file.read(target, hostOffset);
    else await this.#readExpanded(hostOffset - fileEnd, target);
  }

  /** Whether the data at `hostOffset` of a run is compressed. */
  isCompressed(hostOffset: number): boolean {
    return hostOffset >= this.#file.context.fileEnd;
  }

  /**
   * Where in the file the stream of a compressed cluster is, in bytes. The stream may be shorter than
   * `length`.
   * @throws {DamageError} the cluster is not compressed
   */
  async streamOf(cluster: number): Promise<{ readonly hostOffset: number; readonly length: number }> {
    const index = Math.floor(cluster / this.#file.l2Entries);
    const table = await this.#cachedTable(index);
    const entry = table && decodeL2Entry(table, cluster - index * this.#file.l2Entries, this.#file.context);
    if (entry?.kind !== "compressed") throw this.#damage(cluster, "there is no compressed cluster");
    return entry;
  }

  /** An L2 table that several L1 entries point to, and the first guest cluster of the last of them. */
  sharedTable(): { readonly hostOffset: number; readonly cluster: number } | undefined {
    const offsets = new Float64Array(this.#l1.length / ENTRY_BYTES);
    for (let index = 0; index < offsets.length; index += 1) {
      const entry = decodeL1Entry(this.#l1, index, this.#file.context);
      if (entry.kind === "table") offsets[index] = entry.hostOffset;
    }
    const shared = offsets.toSorted().find((offset, i, sorted) => offset !== 0 && offset === sorted[i - 1]);
    if (shared === undefined) return undefined;
    return { hostOffset: shared, cluster: offsets.lastIndexOf(shared) * this.#file.l2Entries };
  }

  /**
   * The refcount of the cluster at `hostOffset` of the file, as the image has it; 0 if its entry is invalid.
   * @throws {DamageError} the refcount table or block is not in the file
   */
  async refcountAt(hostOffset: number): Promise<number> {
    const { clusterSize, refcountOrder, refcountTableOffset, refcountTableClusters } = this.#file.header;
    const cluster = hostOffset / clusterSize;
    const perBlock = (clusterSize * 8) / 2 ** refcountOrder;
    const index = Math.floor(cluster / perBlock);
    if (index >= (refcountTableClusters * clusterSize) / ENTRY_BYTES) return 0;
    const table = await this.#file.readTable(refcountTableOffset + index * ENTRY_BYTES, ENTRY_BYTES);
    const entry = decodeRefcountTableEntry(table, 0, this.#file.context);
    if (entry.kind !== "table") return 0;
    const block = await this.#file.readTable(entry.hostOffset, clusterSize);
    return decodeRefcount(block, cluster % perBlock, refcountOrder);
  }

  /** The stream of a compressed cluster as it is in the file, possibly with some bytes of what follows. */
  async readStream(cluster: number): Promise<Buffer> {
    const { hostOffset, length } = await this.streamOf(cluster);
    return await this.#file.readTable(hostOffset, length);
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** If several entries shared a table, a small file could describe a disk that takes for ever to walk. */
  #assertDistinctTables(): void {
    const shared = this.sharedTable();
    if (shared === undefined) return;
    const problem = `the L1 entry points to the L2 table of another, at ${shared.hostOffset}`;
    throw this.#damage(shared.cluster, problem);
  }

  async #readL2Table(index: number): Promise<Buffer | undefined> {
    const entry = decodeL1Entry(this.#l1, index, this.#file.context);
    switch (entry.kind) {
      case "none":
        return undefined;
      case "table":
        return await this.#file.readTable(entry.hostOffset, this.geometry.clusterSize);
      case "invalid":
        throw this.#damage(index * this.#file.l2Entries, `the L1 entry ${entry.problem}`);
      default:
        return entry satisfies never;
    }
  }

  /** Undefined if the image leaves the cluster to its backing file. */
  #run(cluster: number, entry: Exclude<L2Entry, { readonly kind: "invalid" }>): Draft | undefined {
    switch (entry.kind) {
      case "standard": {
        const { hostOffset, dataMask, zeroMask } = entry;
        if (dataMask === ALL_SUBCLUSTERS) return { kind: "data", cluster, count: 1, hostOffset };
        if (zeroMask === ALL_SUBCLUSTERS) return { kind: "zero", cluster, count: 1 };
        if (dataMask === 0 && zeroMask === 0) return undefined;
        const slot = dataMask === 0 ? 0 : hostOffset;
        return { kind: "partial", cluster, count: 1, hostOffset: slot, dataMask, zeroMask };
      }
      case "compressed":
        return { kind: "data", cluster, count: 1, hostOffset: this.#expandedOffset(cluster) };
      default:
        return entry satisfies never;
    }
  }

  /** @throws the error itself if there is no `onDamage`, or if the error doesn't concern the image */
  #tell(
    error: unknown,
    { first, count }: { readonly first: number; readonly count: number },
    onDamage: OnDamage | undefined,
  ): void {
    const message = damageIn(error);
    if (!onDamage || message === undefined) throw error;
    const { clusterSize } = this.geometry;
    onDamage({ message, guestOffset: first * clusterSize, length: count * clusterSize });
  }

  #expandedOffset(cluster: number): number {
    const offset = this.#file.context.fileEnd + cluster * this.geometry.clusterSize;
    if (Number.isSafeInteger(offset)) return offset;
    throw this.#damage(cluster, "a compressed cluster is further away than can be told");
  }

  /** `offset` counts from the beginning of the expanded area. */
  async #readExpanded(offset: number, target: Uint8Array): Promise<void> {
    const { clusterSize } = this.geometry;
    const pieces: Promise<void>[] = [];
    for (let done = 0; done < target.length; ) {
      const cluster = Math.floor((offset + done) / clusterSize);
      const skipped = offset + done - cluster * clusterSize;
      const piece = target.subarray(done, done + clusterSize - skipped);
      const filled = this.#decompress(cluster).then((bytes) => {
        piece.set(bytes.subarray(skipped, skipped + piece.length));
        giveBackCluster(bytes);
      });
      // A thread that blocks gains nothing from several at once, which would all take memory.
      if (this.#options.blocking) await filled;
      else pieces.push(filled);
      done += piece.length;
    }
    // Waits for all pieces: none may write into the buffer after this returns.
    for (const outcome of await Promise.allSettled(pieces)) {
      if (outcome.status === "rejected") throw outcome.reason;
    }
  }

  async #decompress(cluster: number): Promise<Buffer> {
    return await this.decompress(cluster, await this.#streamToDecompress(cluster));
  }

  /**
   * Decompresses the stream of a cluster, which may be followed by bytes of other clusters.
   * @throws {DamageError} it makes no cluster
   */
  async decompress(cluster: number, stream: Uint8Array): Promise<Buffer> {
    const { clusterSize } = this.geometry;
    try {
      return await decompressCluster(stream, this.header.compression, clusterSize, this.#options);
    } catch (error) {
      if (!(error instanceof DamageError)) throw error;
      const problem = "the compressed cluster can't be decompressed";
      throw this.#damage(cluster, problem, error);
    }
  }

  /** Threads that block decompress one stream after the other, so they reuse the same memory. */
  async #streamToDecompress(cluster: number): Promise<Buffer> {
    if (!this.#options.blocking) return await this.readStream(cluster);
    const { hostOffset, length } = await this.streamOf(cluster);
    if (this.#stream.length < length) this.#stream = Buffer.allocUnsafeSlow(length);
    const stream = this.#stream.subarray(0, length);
    await this.#file.read(stream, hostOffset);
    return stream;
  }

  #cachedTable(index: number): Promise<Buffer | undefined> {
    const cached = this.#tables.get(index);
    if (cached) return cached;
    const table = this.#readL2Table(index);
    this.#tables.set(index, table);
    const [oldest] = this.#tables.keys();
    const most = this.#options.blocking ? CACHED_TABLES.blocking : CACHED_TABLES.elsewhere;
    if (this.#tables.size > most && oldest !== undefined) this.#tables.delete(oldest);
    return table;
  }

  #damage(cluster: number, problem: string, cause?: unknown): DamageError {
    const guestOffset = cluster * this.geometry.clusterSize;
    const { path } = this.#file;
    const why = cause instanceof Error ? ` (${cause.message})` : "";
    return new DamageError("E_QCOW2_ENTRY", `${path}: at guest offset ${guestOffset}, ${problem}${why}`, {
      cause,
      details: { path, guestOffset, problem },
    });
  }
}

/** Whether `next` continues `last`, in the guest and in the file. */
function continues(last: Draft, next: Draft, clusterSize: number): last is Exclude<Draft, PartialRun> {
  if (last.kind === "partial" || next.cluster !== last.cluster + last.count) return false;
  if (last.kind === "zero") return next.kind === "zero";
  return next.kind === "data" && next.hostOffset === last.hostOffset + last.count * clusterSize;
}
