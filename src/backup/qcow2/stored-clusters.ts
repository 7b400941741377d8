import type { Geometry, PlannedRun } from "../image/image.js";
import { slotsOf } from "../image/image.js";
import type { ImageFile } from "../image/image-file.js";
import type { CompressionMethod } from "./can-compress.js";
import { decompressCluster } from "./decompress.js";
import { StreamPlacement } from "./stream-placement.js";

/** Clusters that are read and decompressed at a time. */
const AT_ONCE = 16;

/** One stored cluster of a compressed image. */
interface StoredCluster {
  readonly run: PlannedRun;
  /** Guest cluster. */
  readonly cluster: number;
  /** Its bytes, a whole cluster. Subclusters that are not data are undefined. */
  readonly bytes: Buffer;
}

/**
 * Reads the stored clusters of a compressed image that has no tables yet, in the order in which they were
 * stored: their places follow from the sizes.
 */
export class StoredClusters {
  readonly #file: ImageFile;
  readonly #geometry: Geometry;
  readonly #method: CompressionMethod;
  readonly #placement: StreamPlacement;

  constructor(file: ImageFile, geometry: Geometry, method: CompressionMethod) {
    this.#file = file;
    this.#geometry = geometry;
    this.#method = method;
    this.#placement = new StreamPlacement(geometry.clusterSize);
  }

  /**
   * The clusters of the next runs.
   * @param sizes of their stored clusters: the length of the stream, 0 if it is stored whole
   * @throws {DamageError} the file has no such clusters there
   */
  async *read(runs: readonly PlannedRun[], sizes: readonly number[]): AsyncGenerator<StoredCluster> {
    let batch: Promise<StoredCluster>[] = [];
    let next = 0;
    for (const run of runs) {
      for (let i = 0; i < slotsOf(run); i += 1) {
        batch.push(this.#read(run, run.cluster + i, sizes[next++] ?? 0));
        if (batch.length < AT_ONCE) continue;
        yield* await Promise.all(batch);
        batch = [];
      }
    }
    yield* await Promise.all(batch);
  }

  #read(run: PlannedRun, cluster: number, size: number): Promise<StoredCluster> {
    // The place is found before anything is awaited, so that the order stays.
    const place = size === 0 ? this.#placement.cluster() : this.#placement.stream(size);
    return this.#bytesAt(place, size).then((bytes) => ({ run, cluster, bytes }));
  }

  async #bytesAt(place: number, size: number): Promise<Buffer> {
    const { clusterSize } = this.#geometry;
    if (size > 0) {
      const stream = Buffer.alloc(size);
      await this.#file.fill(stream, place, place + size);
      return await decompressCluster(stream, this.#method, clusterSize);
    }
    // What the file lacks was never written: the last cluster may end with the disk.
    const bytes = Buffer.alloc(clusterSize);
    await this.#file.read(bytes, place);
    return bytes;
  }
}
