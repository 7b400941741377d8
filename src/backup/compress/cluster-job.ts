import { isZero } from "../base/zeroes.js";
import { createDigester, type DigestAlgorithm, type Digester, digestClusters } from "../digest/digest.js";
import { ALL_SUBCLUSTERS } from "../image/image.js";
import {
  ClusterCompressor,
  type Compression,
  type Compressor,
  SameThreadCompressor,
} from "../qcow2/compress-cluster.js";

/** Clusters in slots of one buffer, side by side from its beginning, and what to find out about them. */
export interface ClusterJob {
  /** Belongs to the job until the result brings it back. */
  readonly buffer: ArrayBuffer;
  readonly clusterSize: number;
  /** For each slot the subclusters that have data; the rest of such a slot is zeroes. */
  readonly masks: Uint32Array;
  /** Bytes of the slots that the disk has; only the last slot can go on past its end. */
  readonly length: number;
  /** Left out: no digests. */
  readonly digest?: DigestAlgorithm | undefined;
  /** Left out: nothing is compressed. Clusters defined in part never are. */
  readonly compression?: Compression | undefined;
}

export interface ClusterResult {
  /**
   * The job's buffer. A cluster that was compressed has given way to its stream; one that was not is as before, with
   * zeroes after the end of the disk.
   */
  readonly buffer: ArrayBuffer;
  /** For each slot: 0, all zeroes; the cluster size, stored as it is; less, the length of the stream. */
  readonly sizes: Uint32Array<ArrayBuffer>;
  /** One for each slot, as `digestsOf` makes them; those of zeroes are left empty. */
  readonly digests: Buffer<ArrayBuffer>;
}

/** Does one job at a time; what a job needed is kept for the next. */
export class ClusterJobs {
  readonly #digesters = new Map<DigestAlgorithm, Digester>();
  #compressor: { readonly key: string; readonly compressor: Compressor } | undefined;
  readonly #ownThread: boolean;

  /** @param options.ownThread compress on the calling thread */
  constructor(options: { readonly ownThread: boolean }) {
    this.#ownThread = options.ownThread;
  }

  async run(job: ClusterJob): Promise<ClusterResult> {
    const { clusterSize, masks, length, digest } = job;
    const digester = digest && (await this.#digesterFor(digest));
    const compressor = job.compression && this.#compressorFor(job.compression, clusterSize);
    // Memory of their own, so that it can be handed to another thread.
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
