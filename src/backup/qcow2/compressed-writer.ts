import assert from "node:assert/strict";
import { UsageError } from "../base/errors.js";
import {
  type ClusterRun,
  clustersIn,
  dataBytesOf,
  type Geometry,
  maskStretches,
  type PlannedRun,
} from "../image/image.js";
import { ImageFile } from "../image/image-file.js";
import type { NewFile, NewPlace } from "../image/new-file.js";
import { RunList } from "../image/run-list.js";
import type { CompressionMethod } from "./can-compress.js";
import { CollectedWrites } from "./collected-writes.js";
import {
  type Backing,
  createQcow2FileAt,
  cutQcow2File,
  finishQcow2,
  type Qcow2WriterOptions,
} from "./finish.js";
import { compressedOffsetBits } from "./format.js";
import { assertFits } from "./layout.js";
import { SizeList } from "./size-list.js";
import { StoredClusters } from "./stored-clusters.js";
import { placed, StreamPlacement, usesOfPlaced } from "./stream-placement.js";
import type { TableRun } from "./tables.js";

interface Qcow2CompressedWriterOptions extends Qcow2WriterOptions {
  /** The method of all streams: an image has only one. Undefined: every cluster is stored as it is. */
  readonly compression: CompressionMethod | undefined;
}

/** In the list of sizes: a cluster stored as it is. */
const WHOLE = 0;
/** A refcount has 16 bits. Short streams are padded, so that a cluster never holds more streams than this. */
const MAX_STREAMS_IN_CLUSTER = 16 * 1024;

/**
 * Writes a qcow2 image (version 3) of compressed clusters. Their lengths are only known when they arrive, so
 * unlike `Qcow2Writer` it takes everything in guest order and finds the places itself (`StreamPlacement` has
 * the drawing). Clusters that don't shrink are stored uncompressed. So are clusters defined in part, which
 * qcow2 can't compress.
 *
 * Until `finish` the file holds only data, as with `Qcow2Writer`. Memory: two bytes a cluster (four above
 * 64 KiB), and 32 for each stretch of clusters stored without a gap.
 */
export class Qcow2CompressedWriter implements AsyncDisposable {
  readonly geometry: Geometry;
  readonly format = "qcow2";
  readonly compression: CompressionMethod | undefined;
  readonly #file: NewFile;
  /** The same file if it is one of this machine that is gone on with. */
  readonly #left: ImageFile | undefined;
  readonly #writes: CollectedWrites;
  readonly #backing: Backing | undefined;
  readonly #placement: StreamPlacement;
  /** Their host clusters are the ranks of stored clusters, from 0; the sizes are in the same order. */
  readonly #runs: RunList;
  readonly #sizes: SizeList;
  readonly #padding: Buffer;
  #storedBytes = 0;

  private constructor(file: NewFile, options: Qcow2CompressedWriterOptions, left?: ImageFile) {
    const { clusterSize } = options.geometry;
    this.geometry = options.geometry;
    this.compression = options.compression;
    this.#file = file;
    this.#left = left;
    this.#writes = new CollectedWrites(file);
    this.#backing = options.backing;
    this.#placement = new StreamPlacement(clusterSize);
    this.#runs = new RunList({ geometry: options.geometry, firstHostCluster: 0 });
    this.#sizes = new SizeList(clusterSize);
    this.#padding = Buffer.alloc(clusterSize / MAX_STREAMS_IN_CLUSTER);
  }

  /**
   * Creates the file, which must not exist.
   * @throws {UsageError} the geometry or the backing file's name is beyond what qcow2 can hold
   * @throws the file system's error, with `code`
   */
  static async create(
    place: NewPlace,
    options: Qcow2CompressedWriterOptions,
  ): Promise<Qcow2CompressedWriter> {
    assertInReach(options.geometry);
    return new Qcow2CompressedWriter(await createQcow2FileAt(place, options), options);
  }

  /**
   * Opens a file that a run left which was killed.
   * @throws {DamageError} `E_IMAGE_FILE`: it is no regular file, or has other names too
   */
  static async reopen(path: string, options: Qcow2CompressedWriterOptions): Promise<Qcow2CompressedWriter> {
    assertInReach(options.geometry);
    const left = await ImageFile.openForWriting(path);
    return new Qcow2CompressedWriter(left, options, left);
  }

  /** Number of clusters that are stored, as streams or whole. */
  get stored(): number {
    return this.#sizes.length;
  }

  /** Of the stored clusters from that one on: the length of the stream, 0 if it is stored whole. */
  sizesFrom(first: number): number[] {
    return Array.from({ length: this.stored - first }, (_, i) => this.#sizes.at(first + i));
  }

  /** Reads what an earlier run has stored, from the first cluster on. */
  readBack(): StoredClusters {
    assert(this.#left !== undefined && this.compression !== undefined, "nothing is gone on with");
    return new StoredClusters(this.#left, this.geometry, this.compression);
  }

  /**
   * Records a run that the file has already.
   * @param sizes of its stored clusters, as `sizesFrom` gives them
   */
  keep(run: PlannedRun, sizes: readonly number[]): void {
    const hostOffset = sizes.length === 0 ? 0 : this.stored * this.geometry.clusterSize;
    const kept = { ...run, hostOffset } as ClusterRun;
    this.#addRun(kept);
    for (const [i, size] of sizes.entries()) {
      this.#sizes.push(size);
      if (size === WHOLE) this.#placement.cluster();
      else this.#placement.stream(size);
      const one = run.kind === "data" ? { ...run, cluster: run.cluster + i, count: 1 } : run;
      this.#storedBytes += size === WHOLE ? dataBytesOf(one, this.geometry) : size;
    }
  }

  /** Removes from the file what was not kept. */
  async cutBehind(): Promise<void> {
    assert(this.#left !== undefined, "nothing is gone on with");
    await cutQcow2File(this.#left, this.#placement.end, this.geometry);
  }

  /** Has everything that was stored so far in the file, with `sync` on stable storage. */
  async settle({ sync }: { readonly sync: boolean }): Promise<void> {
    this.#writes.flush();
    if (sync) await this.#file.datasync();
  }

  /**
   * Waits until more may be stored.
   * @throws the first failure of a write
   */
  async capacity(): Promise<void> {
    await this.#file.capacity();
  }

  /** Stores a cluster as a compressed stream, which is shorter than a cluster and yields exactly one. */
  addStream(cluster: number, stream: Uint8Array): void {
    const { clusterSize } = this.geometry;
    const size = Math.max(stream.length, this.#padding.length);
    assert(stream.length > 0 && size < clusterSize, `a stream of ${stream.length} bytes is no gain`);
    this.#addRun({ kind: "data", cluster, count: 1, hostOffset: this.#sizes.length * clusterSize });
    this.#sizes.push(size);
    const hostOffset = this.#placement.stream(size);
    this.#writes.write(stream, hostOffset);
    if (size > stream.length) {
      this.#writes.write(this.#padding.subarray(stream.length), hostOffset + stream.length);
    }
    this.#storedBytes += size;
  }

  /** Stores a cluster uncompressed. `bytes` may end at the end of the disk. */
  addCluster(cluster: number, bytes: Uint8Array): void {
    const rank = this.#sizes.length * this.geometry.clusterSize;
    const run = { kind: "data", cluster, count: 1, hostOffset: rank } as const;
    this.#storeWhole(run, bytes);
    this.#storedBytes += dataBytesOf(run, this.geometry);
  }

  /**
   * Records a cluster defined in part. `slot` has its data subclusters at their places; it is ignored if
   * `dataMask` is 0.
   * @throws {UsageError} the disk is too large for such tables
   */
  addPartial(
    run: { readonly cluster: number; readonly dataMask: number; readonly zeroMask: number },
    slot: Uint8Array,
  ): void {
    const { cluster, dataMask, zeroMask } = run;
    const hostOffset = dataMask === 0 ? 0 : this.#sizes.length * this.geometry.clusterSize;
    const noted = { kind: "partial", cluster, count: 1, hostOffset, dataMask, zeroMask } as const;
    this.#addRun(noted);
    if (dataMask !== 0) {
      this.#sizes.push(WHOLE);
      const place = this.#placement.cluster();
      // The gaps between the stretches stay holes.
      for (const { offset, length } of maskStretches(dataMask, this.geometry.clusterSize)) {
        this.#writes.write(slot.subarray(offset, offset + length), place + offset);
      }
    }
    this.#storedBytes += dataBytesOf(noted, this.geometry);
  }

  /** Records clusters that read as zeroes. */
  addZeroes(cluster: number, count: number): void {
    this.#addRun({ kind: "zero", cluster, count });
  }

  /**
   * Completes the image, as `Qcow2Writer` does.
   * @returns bytes of guest data in the file as stored: for a compressed cluster, the length of its stream
   */
  async finish(options: { readonly sync: boolean }): Promise<{ readonly storedBytes: number }> {
    this.#writes.flush();
    const { clusterSize } = this.geometry;
    const image = {
      geometry: this.geometry,
      backing: this.#backing,
      compression: this.compression,
      extended: this.#runs.hasPartial,
      dataEnd: this.#placement.end / clusterSize,
      runs: { [Symbol.iterator]: () => this.#placedAgain() },
      uses: usesOfPlaced(this.#placedAgain(), clusterSize),
    };
    await finishQcow2(this.#file, image, options);
    return { storedBytes: this.#storedBytes };
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #storeWhole(run: ClusterRun, bytes: Uint8Array): void {
    assert(bytes.length <= this.geometry.clusterSize, "more bytes than a cluster has");
    this.#addRun(run);
    this.#sizes.push(WHOLE);
    this.#writes.write(bytes, this.#placement.cluster());
  }

  /** Called before anything is placed or written, so that a rejected run leaves no trace. */
  #addRun(run: ClusterRun): void {
    assert(run.cluster + run.count <= clustersIn(this.geometry), "the run is behind the end of the disk");
    const alreadyExtended = this.#runs.hasPartial;
    this.#runs.append(run);
    if (this.#runs.hasPartial && !alreadyExtended) assertFits(this.geometry, true);
  }

  /** Computes all places again from the sizes. They must equal those that were written. */
  *#placedAgain(): Generator<TableRun> {
    const { clusterSize } = this.geometry;
    const placement = new StreamPlacement(clusterSize);
    yield* placed({ clusterSize, runs: this.#runs, sizes: this.#sizes }, placement);
    assert.equal(placement.end, this.#placement.end);
  }
}

/** Larger clusters leave fewer bits for the place of a compressed cluster: 49 at 2 MiB. */
function assertInReach(geometry: Geometry): void {
  const { virtualSize, clusterSize } = geometry;
  const end = (1 + clustersIn(geometry)) * clusterSize;
  if (end <= 2 ** compressedOffsetBits(Math.log2(clusterSize))) return;
  const message = `a disk of ${virtualSize} bytes is too large for compressed clusters of ${clusterSize} bytes: use smaller clusters`;
  throw new UsageError("E_QCOW2_LIMIT", message, { details: { virtualSize, clusterSize } });
}
