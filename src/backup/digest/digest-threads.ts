import { availableParallelism } from "node:os";
import { ServiceThreads } from "../threads/service-threads.js";
import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "./digest.js";

/** The `workerData` of a thread. */
export interface DigestWorkerData {
  readonly algorithm: DigestAlgorithm;
}

/**
 * Stretches of a file as three numbers each, in bytes: position, length, unit. Every `unit` bytes get a digest; the
 * last one of a stretch is of the bytes that are left. With unit 0, the next stretch continues the same digest.
 */
export interface DigestQuestion {
  readonly path: string;
  readonly stretches: Float64Array<ArrayBuffer>;
  /** How many digests the stretches have. */
  readonly digests: number;
}

/** Digests, one after the other. */
export type Digests = Uint8Array<ArrayBuffer>;

/** Path of a file that gets no more questions. */
export type ForgottenPath = string;

/** More threads read no faster. */
const MOST_THREADS = 4;

/** Threads that read files and digest them, shared by the files of a point. */
export class DigestThreads extends ServiceThreads<DigestQuestion, Digests, ForgottenPath> {
  readonly algorithm: DigestAlgorithm;

  constructor(algorithm: DigestAlgorithm) {
    super({
      script: "#digest-worker",
      // One processor is left for the caller.
      most: Math.max(1, Math.min(availableParallelism() - 1, MOST_THREADS)),
      workerData: { algorithm } satisfies DigestWorkerData,
      code: "E_DIGEST_THREAD",
      failedCode: "E_DIGEST_READ",
      lost: "the thread that digests has ended",
      failed: "what was stored can't be digested",
      closed: "the digests were given up",
    });
    this.algorithm = algorithm;
  }

  /** Bytes of one digest. */
  get digestSize(): number {
    return DIGEST_ALGORITHMS[this.algorithm].bytes;
  }

  /**
   * Sends a question to a thread. Its stretches are transferred and can't be used afterwards.
   * @returns the digests, one after the other
   * @throws {BackupError} the file can't be read, or a thread has died
   */
  async ask(question: DigestQuestion): Promise<Buffer> {
    // A Buffer arrives as a plain Uint8Array.
    return Buffer.from((await this.put(question, [question.stretches.buffer])).buffer);
  }
}
