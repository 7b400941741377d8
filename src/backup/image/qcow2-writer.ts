import assert from "node:assert/strict";
import { UsageError } from "../errors.js";
import { type ClusterRun, clustersIn, type Geometry, type ImageWriter } from "./image.js";
import { Appender, ImageFile } from "./image-file.js";
import { ENTRY_BYTES, LIMITS, writeCopiedOffset } from "./qcow2-format.js";
import { encodeHeader } from "./qcow2-header.js";
import { assertFits, type Layout, layOut } from "./qcow2-layout.js";
import { countL2Tables, l2Tables, refcountBlocks, refcountTable } from "./qcow2-tables.js";
import { RunList } from "./run-list.js";

export interface Qcow2WriterOptions {
  readonly geometry: Geometry;
  readonly backing?: Backing | undefined;
}

/** What the header names as the image below. */
export interface Backing {
  /** Taken as it is; QEMU looks it up from the new image's folder. */
  readonly name: string;
  readonly format: "qcow2" | "raw";
}

const MIN_CLUSTER_SIZE = 16 * 1024;
const MAX_CLUSTER_SIZE = 2 * 1024 * 1024;
/** qcow2 counts the disk in sectors. */
const SECTOR = 512;

/**
 * Writes a qcow2 image (version 3) whose stored clusters are packed in guest order; `Layout` has the drawing.
 *
 * Until `finish` the file is data only, and its first cluster a hole: what was not finished is not an image. Slots
 * that no run mentions stay unreferenced. Where clusters turned out to be defined in part, the tables have
 * extended entries (QEMU 5.2 or newer can read them), otherwise standard ones.
 */
export class Qcow2Writer implements ImageWriter, AsyncDisposable {
  readonly geometry: Geometry;
  readonly format = "qcow2";
  readonly #file: ImageFile;
  readonly #backing: Backing | undefined;
  readonly #runs: RunList;

  private constructor(file: ImageFile, { geometry, backing }: Qcow2WriterOptions) {
    this.#file = file;
    this.geometry = geometry;
    this.#backing = backing;
    this.#runs = new RunList({ clusterSize: geometry.clusterSize, firstHostCluster: 1 });
  }

  /**
   * Makes the file, which must not exist.
   * @throws {UsageError} the geometry or the backing file's name is beyond what qcow2 can hold
   * @throws the file system's error, with `code`
   */
  static async create(path: string, options: Qcow2WriterOptions): Promise<Qcow2Writer> {
    assertClusterSize(options.geometry.clusterSize);
    assertFits(options.geometry, false);
    if (options.backing) assertName(options.backing.name);
    return new Qcow2Writer(await ImageFile.create(path), options);
  }

  hostOffset(_cluster: number, rank: number): number {
    return (1 + rank) * this.geometry.clusterSize;
  }

  writeNow(hostOffset: number, data: Uint8Array): void {
    assert(hostOffset >= this.geometry.clusterSize, "data must not go into the header's cluster");
    this.#file.writeNow(data, hostOffset);
  }

  /** @throws {UsageError} a cluster defined in part, on a disk that is too large for such tables */
  addRun(run: ClusterRun): void {
    assert(run.cluster + run.count <= clustersIn(this.geometry), "the run is behind the end of the disk");
    const alreadyExtended = this.#runs.hasPartial;
    this.#runs.append(run);
    if (this.#runs.hasPartial && !alreadyExtended) assertFits(this.geometry, true);
  }

  async finish({ sync }: { readonly sync: boolean }): Promise<{ readonly storedBytes: number }> {
    const extended = this.#runs.hasPartial;
    const shape = { clusterSize: this.geometry.clusterSize, extended };
    const layout = layOut({
      geometry: this.geometry,
      extended,
      dataEnd: this.#runs.hostEnd,
      l2Tables: countL2Tables(this.#runs, shape),
    });

    // Cuts off slots behind the last that is used, and makes room for the tables.
    await this.#file.truncate(layout.fileSize);
    if (sync) await this.#file.datasync();
    await this.#writeTables(layout, extended);
    if (sync) await this.#file.sync();
    await this.#file.write(this.#header(layout, extended), 0);
    if (sync) await this.#file.sync();
    return { storedBytes: this.#runs.dataBytes };
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #writeTables(layout: Layout, extended: boolean): Promise<void> {
    const { clusterSize } = this.geometry;
    const l1 = Buffer.alloc(layout.l1Clusters * clusterSize);
    const out = new Appender(this.#file, layout.l2Offset);
    for (const { index, bytes } of l2Tables(this.#runs, { clusterSize, extended })) {
      writeCopiedOffset(l1, out.position, index * ENTRY_BYTES);
      await out.append(bytes);
    }
    await out.append(l1);
    await out.append(refcountTable(layout, clusterSize));
    for (const block of refcountBlocks(this.#runs, layout, clusterSize)) await out.append(block);
    await out.flush();
    assert.equal(out.position, layout.fileSize);
  }

  #header(layout: Layout, extended: boolean): Buffer {
    const { virtualSize, clusterSize } = this.geometry;
    return encodeHeader({
      clusterBits: Math.log2(clusterSize),
      virtualSize: Math.ceil(virtualSize / SECTOR) * SECTOR,
      l1Entries: layout.l1Entries,
      l1Offset: layout.l1Offset,
      refcountTableOffset: layout.refcountTableOffset,
      refcountTableClusters: layout.refcountTableClusters,
      extended,
      backingFile: this.#backing?.name,
      backingFormat: this.#backing?.format,
    });
  }
}

function assertClusterSize(clusterSize: number): void {
  const powerOfTwo = Number.isInteger(Math.log2(clusterSize));
  if (powerOfTwo && clusterSize >= MIN_CLUSTER_SIZE && clusterSize <= MAX_CLUSTER_SIZE) return;
  throw new UsageError(
    "E_CLUSTER_SIZE",
    `a cluster size of ${clusterSize} bytes is not possible: use a power of two from 16 KiB to 2 MiB`,
    { details: { clusterSize } },
  );
}

function assertName(name: string): void {
  const bytes = Buffer.byteLength(name);
  if (bytes > 0 && bytes <= LIMITS.backingName) return;
  throw new UsageError(
    "E_BACKING_NAME",
    `the backing file's name has ${bytes} bytes; qcow2 holds 1 to ${LIMITS.backingName}`,
    { details: { name } },
  );
}
