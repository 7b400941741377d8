import { availableParallelism } from "node:os";
import { ServiceThreads } from "../threads/service-threads.js";
import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "./digest.js";

/** The `workerData` of a thread. */
export interface DigestWorkerData {
  readonly algorithm: DigestAlgorithm;
}

/** Stretches of a file whose digests are wanted. */
export interface DigestQuestion {
  readonly path: string;
  /**
   * Three numbers for each stretch, in bytes: position, length and unit. Each `unit` bytes of the stretch get
   * one digest; the last digest covers the bytes that are left. A stretch with unit 0 has no digest of its
   * own: the next digest covers it and the stretches after it, up to and including the first one whose unit
   * isn't 0.
   */
  readonly stretches: Float64Array<ArrayBuffer>;
  /** The number of digests that the stretches get. */
  readonly digests: number;
}

/** Digests in the order of the stretches, one after the other. */
export type Digests = Uint8Array<ArrayBuffer>;

/** Path of a file about which no more questions come, so that the threads can close it. */
export type ForgottenPath = string;

/** More threads don't read faster. */
const MOST_THREADS = 4;

/** Threads that read files and compute digests. The disks of a point share them. */
export class DigestThreads extends ServiceThreads<DigestQuestion, Digests, ForgottenPath> {
  readonly algorithm: DigestAlgorithm;

  constructor(algorithm: DigestAlgorithm) {
    super({
      script: "#digest-worker",
      // The caller needs one processor.
      most: Math.max(1, Math.min(availableParallelism() - 1, MOST_THREADS)),
      workerData: { algorithm } satisfies DigestWorkerData,
      code: "E_DIGEST_THREAD",
      failedCode: "E_DIGEST_READ",
      lost: "the thread that digests has ended",
      failed: "the stored data can't be digested",
      closed: "digesting was cancelled",
    });
    this.algorithm = algorithm;
  }

  /** Length of one digest in bytes. */
  get digestSize(): number {
    return DIGEST_ALGORITHMS[this.algorithm].bytes;
  }

  /**
   * Asks a question. Its `stretches` are moved to the thread and can't be used afterwards.
   * @returns the digests in the order of the stretches, one after the other
   * @throws {BackupError} `E_DIGEST_READ`: the file can't be read; `E_DIGEST_THREAD`: a thread ended, or
   *   `close` was called
   */
  async ask(question: DigestQuestion): Promise<Buffer> {
    // Between threads, a Buffer becomes a plain Uint8Array.
    return Buffer.from((await this.put(question, [question.stretches.buffer])).buffer);
  }
}
