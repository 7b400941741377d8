import { isZero } from "../base/zeroes.js";
import type { DigestAlgorithm } from "../digest/algorithms.js";
import { createDigester, type Digester, digestClusters } from "../digest/digest.js";
import { ALL_SUBCLUSTERS } from "../image/image.js";
import {
  ClusterCompressor,
  type Compression,
  type Compressor,
  SameThreadCompressor,
} from "../qcow2/compress-cluster.js";

/** Clusters that lie side by side in one buffer, each in its slot, and what a thread does with them. */
export interface ClusterJob {
  /** The slots, from its beginning. It belongs to the job until the result returns it. */
  readonly buffer: ArrayBuffer;
  readonly clusterSize: number;
  /** For each slot the mask of the subclusters that have data. The others must be zeroes. */
  readonly masks: Uint32Array;
  /** Bytes of the slots that are inside the disk. Only the last slot can extend past its end. */
  readonly length: number;
  /** Undefined: no digests are computed. */
  readonly digest?: DigestAlgorithm | undefined;
  /** Undefined: nothing is compressed. Partial clusters are never compressed. */
  readonly compression?: Compression | undefined;
}

export interface ClusterResult {
  /**
   * The job's buffer. The stream of a compressed cluster is at the beginning of its slot. All other clusters
   * are unchanged, but bytes after the end of the disk are set to zero.
   */
  readonly buffer: ArrayBuffer;
  /**
   * For each slot the bytes to store: 0 if the cluster is all zeroes, the cluster size if it isn't
   * compressed, otherwise the length of the stream.
   */
  readonly sizes: Uint32Array<ArrayBuffer>;
  /** One for each slot, as `digestClusters` makes them. For a cluster of zeroes its bytes are 0. */
  readonly digests: Buffer<ArrayBuffer>;
}

/** Does jobs, one at a time. Keeps digesters and the compressor for the next job. */
export class ClusterJobs {
  readonly #digesters = new Map<DigestAlgorithm, Digester>();
  #compressor: { readonly key: string; readonly compressor: Compressor } | undefined;
  readonly #ownThread: boolean;

  /** @param options.ownThread compress on the calling thread; if false, on libuv's threads */
  constructor(options: { readonly ownThread: boolean }) {
    this.#ownThread = options.ownThread;
  }

  /** @throws what the compressor throws; then call `close` before the next job */
  async run(job: ClusterJob): Promise<ClusterResult> {
    const { clusterSize, masks, length, digest } = job;
    const digester = digest && (await this.#digesterFor(digest));
    const compressor = job.compression && this.#compressorFor(job.compression, clusterSize);
    // An ArrayBuffer of its own, so that it can be moved to another thread.
    const digests = Buffer.from(new ArrayBuffer(masks.length * (digester?.size ?? 0)));
    const sizes = new Uint32Array(masks.length);
    const bytes = Buffer.from(job.buffer, 0, masks.length * clusterSize);
    bytes.fill(0, length);

    for (const [i, dataMask] of masks.entries()) {
      const slot = bytes.subarray(i * clusterSize, (i + 1) * clusterSize);
      if (isZero(slot)) continue;
      const whole = dataMask === ALL_SUBCLUSTERS;
      if (digester) {
        const run = whole
          ? ({ kind: "data", cluster: i, count: 1 } as const)
          : ({ kind: "partial", cluster: i, count: 1, dataMask } as const);
        const digest = digestClusters(digester, run, slot, { clusterSize, virtualSize: length });
        digest.copy(digests, i * digester.size);
      }
      sizes[i] = whole && compressor ? await compressor.compress(slot) : clusterSize;
    }
    return { buffer: job.buffer, sizes, digests };
  }

  /** Closes the compressor. The next job makes a new one. */
  close(): void {
    this.#compressor?.compressor.close();
    this.#compressor = undefined;
  }

  async #digesterFor(algorithm: DigestAlgorithm): Promise<Digester> {
    const digester = this.#digesters.get(algorithm) ?? (await createDigester(algorithm));
    this.#digesters.set(algorithm, digester);
    return digester;
  }

  #compressorFor(compression: Compression, clusterSize: number): Compressor {
    const key = `${compression.method} ${compression.level} ${clusterSize}`;
    if (this.#compressor?.key === key) return this.#compressor.compressor;
    this.close();
    const Kind = this.#ownThread ? SameThreadCompressor : ClusterCompressor;
    const compressor = new Kind(compression, clusterSize);
    this.#compressor = { key, compressor };
    return compressor;
  }
}
