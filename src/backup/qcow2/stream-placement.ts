import type { StoredRun } from "../image/run-list.js";
import type { SizeList } from "./size-list.js";
import type { HostUse, TableRun } from "./tables.js";

/**
 * How far before the end of the file a stream is put at most: elsewhere files are written from front to back.
 */
const REACH = 1024 * 1024;

/**
 * Finds places in a file for compressed streams and whole clusters, one after the other in guest order.
 * Streams lie back to back, also across the boundaries of host clusters. Space left before a whole cluster is
 * used by later streams that fit:
 *
 *     guest    stream a, stream b, whole C, stream d, stream e
 *     file     |header  |aaaabbb.|CCCCCCCC|        |       d fits behind b, e doesn't:
 *              |header  |aaaabbbd|CCCCCCCC|eeeee...|
 *
 * The places depend only on the sizes: repeating the calls gives the same places.
 */
export class StreamPlacement {
  readonly #clusterSize: number;
  /** Where the next stream goes if it fits. */
  #tail: number;
  /** Offset of the first cluster behind all clusters in use. */
  #free: number;

  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
    // Cluster 0 holds the header.
    this.#tail = clusterSize;
    this.#free = clusterSize;
  }

  /** Bytes from the beginning of the file to the end of the last cluster in use. */
  get end(): number {
    return this.#free;
  }

  /** @returns the host offset of a stream of `size` bytes, less than a cluster */
  stream(size: number): number {
    const tailEnd = Math.ceil(this.#tail / this.#clusterSize) * this.#clusterSize;
    const isNear = this.#free - this.#tail <= REACH;
    const fits = (isNear && this.#tail + size <= tailEnd) || tailEnd === this.#free;
    const offset = fits ? this.#tail : this.#free;
    this.#tail = offset + size;
    if (this.#tail > this.#free) this.#free += this.#clusterSize;
    return offset;
  }

  /** @returns the host offset of a cluster that is stored uncompressed */
  cluster(): number {
    const offset = this.#free;
    this.#free += this.#clusterSize;
    return offset;
  }
}

/** What a compressed image stores, before places are assigned. */
interface PackedClusters {
  readonly clusterSize: number;
  /** Their host clusters are the ranks of stored clusters, from 0. */
  readonly runs: Iterable<StoredRun>;
  /** Sizes of everything that is stored; 0 for an uncompressed cluster. */
  readonly sizes: SizeList;
}

/** Assigns the places again, cluster by cluster in guest order, using a new `placement`. */
export function* placed(
  { clusterSize, runs, sizes }: PackedClusters,
  placement: StreamPlacement,
): Generator<TableRun> {
  for (const run of runs) {
    if (run.dataMask === 0) {
      yield run;
      continue;
    }
    const { dataMask, zeroMask } = run;
    for (let i = 0; i < run.count; i += 1) {
      const cluster = run.cluster + i;
      const streamBytes = sizes.at(run.hostCluster + i);
      if (streamBytes > 0) {
        yield { cluster, count: 1, hostOffset: placement.stream(streamBytes), streamBytes };
      } else {
        yield { cluster, count: 1, hostCluster: placement.cluster() / clusterSize, dataMask, zeroMask };
      }
    }
  }
}

/**
 * How often each host cluster is referred to, in ascending order: once for every stream that has a byte in
 * it. Only the latest cluster with streams can get more of them. Whole clusters placed meanwhile come after
 * it.
 */
export function* usesOfPlaced(runs: Iterable<TableRun>, clusterSize: number): Generator<HostUse> {
  let shared = { cluster: 0, streams: 0 };
  let whole = { first: 0, end: 0 };
  function* settled(): Generator<HostUse> {
    const { cluster, streams } = shared;
    if (streams > 0) yield { first: cluster, end: cluster + 1, refcount: streams };
    if (whole.end > whole.first) yield { ...whole, refcount: 1 };
    shared = { cluster: 0, streams: 0 };
    whole = { first: 0, end: 0 };
  }

  for (const run of runs) {
    if (run.streamBytes === undefined) {
      if (run.dataMask === 0) continue;
      if (whole.end === whole.first) whole = { first: run.hostCluster, end: run.hostCluster };
      whole.end += run.count;
      continue;
    }
    const first = Math.floor(run.hostOffset / clusterSize);
    const last = Math.floor((run.hostOffset + run.streamBytes - 1) / clusterSize);
    for (let cluster = first; cluster <= last; cluster += 1) {
      if (cluster !== shared.cluster) yield* settled();
      shared = { cluster, streams: shared.streams + 1 };
    }
  }
  yield* settled();
}
