import assert from "node:assert/strict";
import { ALL_SUBCLUSTERS, type ClusterRun, dataBytesOf, type Geometry } from "./image.js";

/**
 * A run in the form from which tables are made, the same for all kinds. The masks hold for each of its
 * clusters:
 *
 *     data      dataMask all ones, zeroMask 0
 *     zero      dataMask 0, zeroMask all ones
 *     partial   disjoint masks
 */
export interface StoredRun {
  readonly cluster: number;
  readonly count: number;
  /** Host offset of the first cluster, counted in clusters. Means nothing if `dataMask` is 0. */
  readonly hostCluster: number;
  readonly dataMask: number;
  readonly zeroMask: number;
}

type GrowingRun = { -readonly [K in keyof StoredRun]: StoredRun[K] };

/** Runs are kept in chunks of typed arrays, so that growing never copies. */
const CHUNK_RUNS = 4096;

interface Chunk {
  /** cluster, hostCluster, count */
  readonly places: Float64Array;
  /** dataMask, zeroMask */
  readonly masks: Uint32Array;
}

/**
 * The runs of an image, appended in ascending guest order and kept in 32 bytes each. Neighbours that continue
 * each other become one. So memory grows with the fragmentation of the disk, not with its size.
 */
export class RunList implements Iterable<StoredRun> {
  readonly #geometry: Geometry;
  readonly #chunks: Chunk[] = [];
  /** Number of runs in `#chunks`. */
  #length = 0;
  /** The latest run, still growing. */
  #last: GrowingRun | undefined;
  #end = 0;
  #hostEnd: number;
  #dataBytes = 0;
  #hasPartial = false;

  /** @param options.firstHostCluster the first cluster of the file that may hold data */
  constructor(options: { readonly geometry: Geometry; readonly firstHostCluster: number }) {
    this.#geometry = options.geometry;
    this.#hostEnd = options.firstHostCluster;
  }

  /** Guest cluster after the last run. */
  get end(): number {
    return this.#end;
  }

  /** Host cluster after the highest one that holds data of a run. */
  get hostEnd(): number {
    return this.#hostEnd;
  }

  /** Bytes of the guest in all runs, as `dataBytesOf` counts them. */
  get dataBytes(): number {
    return this.#dataBytes;
  }

  /** Whether some cluster is defined only in part, or is partly zero. */
  get hasPartial(): boolean {
    return this.#hasPartial;
  }

  /** A run must come after all earlier runs, both in the guest and in the file. */
  append(run: ClusterRun): void {
    const next = this.#stored(run);
    if (next.count <= 0 || next.cluster < this.#end)
      assert.fail(`run of cluster ${next.cluster} is out of order`);
    this.#end = next.cluster + next.count;
    if (next.dataMask !== 0) {
      const { hostCluster } = next;
      if (!Number.isSafeInteger(hostCluster) || hostCluster < this.#hostEnd) {
        assert.fail(`the data of cluster ${next.cluster} is misplaced`);
      }
      this.#hostEnd = hostCluster + next.count;
      this.#dataBytes += dataBytesOf(run, this.#geometry);
    }

    if (this.#last && continues(this.#last, next)) {
      this.#last.count += next.count;
      return;
    }
    if (this.#last) this.#push(this.#last);
    this.#last = next;
  }

  *[Symbol.iterator](): Generator<StoredRun> {
    for (let index = 0; index < this.#length; index += 1) {
      const { places, masks } = this.#chunks[Math.floor(index / CHUNK_RUNS)] as Chunk;
      const at = index % CHUNK_RUNS;
      yield {
        cluster: places[at * 3] as number,
        hostCluster: places[at * 3 + 1] as number,
        count: places[at * 3 + 2] as number,
        dataMask: masks[at * 2] as number,
        zeroMask: masks[at * 2 + 1] as number,
      };
    }
    if (this.#last) yield { ...this.#last };
  }

  #push(run: StoredRun): void {
    const at = this.#length % CHUNK_RUNS;
    if (at === 0) {
      this.#chunks.push({ places: new Float64Array(CHUNK_RUNS * 3), masks: new Uint32Array(CHUNK_RUNS * 2) });
    }
    const { places, masks } = this.#chunks[this.#chunks.length - 1] as Chunk;
    places[at * 3] = run.cluster;
    places[at * 3 + 1] = run.hostCluster;
    places[at * 3 + 2] = run.count;
    masks[at * 2] = run.dataMask;
    masks[at * 2 + 1] = run.zeroMask;
    this.#length += 1;
  }

  #stored(run: ClusterRun): GrowingRun {
    const { cluster, count } = run;
    switch (run.kind) {
      case "data": {
        const hostCluster = run.hostOffset / this.#geometry.clusterSize;
        return { cluster, count, hostCluster, dataMask: ALL_SUBCLUSTERS, zeroMask: 0 };
      }
      case "zero":
        return { cluster, count, hostCluster: 0, dataMask: 0, zeroMask: ALL_SUBCLUSTERS };
      case "partial": {
        const hostCluster = run.hostOffset / this.#geometry.clusterSize;
        const dataMask = run.dataMask >>> 0;
        const zeroMask = run.zeroMask >>> 0;
        if ((dataMask & zeroMask) !== 0) assert.fail(`the masks of cluster ${cluster} overlap`);
        if (dataMask === 0 && zeroMask === 0) assert.fail(`the masks of cluster ${cluster} are empty`);
        if (dataMask !== ALL_SUBCLUSTERS && zeroMask !== ALL_SUBCLUSTERS) this.#hasPartial = true;
        return { cluster, count, hostCluster, dataMask, zeroMask };
      }
      default:
        return run satisfies never;
    }
  }
}

function continues(last: StoredRun, next: StoredRun): boolean {
  if (next.cluster !== last.cluster + last.count) return false;
  if (next.dataMask !== last.dataMask || next.zeroMask !== last.zeroMask) return false;
  if (next.dataMask === 0) return true;
  return next.hostCluster === last.hostCluster + last.count;
}
