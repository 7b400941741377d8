import { availableParallelism } from "node:os";
import { ServiceThreads } from "../threads/service-threads.js";
import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "./algorithms.js";
import { type DigestQuestion, DigestService, type Digests, type ForgottenPath } from "./digest-service.js";

/** The `workerData` of a thread. */
export interface DigestWorkerData {
  readonly algorithm: DigestAlgorithm;
}

/** More threads don't read faster. */
const MOST_THREADS = 4;
/**
 * Starting a thread takes longer than digesting so many bytes, so the calling thread digests the first ones.
 */
const FEW_BYTES = 8 * 1024 * 1024;

/**
 * Threads that read files and compute digests. The disks of a point share them. The calling thread digests
 * the first few bytes itself, so that a small point needs no thread.
 */
export class DigestThreads extends ServiceThreads<DigestQuestion, Digests, ForgottenPath> {
  readonly algorithm: DigestAlgorithm;

  /** @param fewBytes how many bytes the calling thread digests; default 8 MiB */
  constructor(algorithm: DigestAlgorithm, fewBytes = FEW_BYTES) {
    let asked = 0;
    super({
      script: "#digest-worker",
      // The caller needs one processor.
      most: Math.max(1, Math.min(availableParallelism() - 1, MOST_THREADS)),
      workerData: { algorithm } satisfies DigestWorkerData,
      sameThread: new DigestService(algorithm),
      isForSameThread: ({ stretches }) => {
        for (let i = 1; i < stretches.length; i += 3) asked += stretches[i] as number;
        return asked <= fewBytes;
      },
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
   * Asks a question. Its `stretches` may be moved to a thread and can't be used afterwards.
   * @returns the digests in the order of the stretches, one after the other
   * @throws {BackupError} `E_DIGEST_READ`: the file can't be read; `E_DIGEST_THREAD`: a thread ended, or
   *   `close` was called
   */
  async ask(question: DigestQuestion): Promise<Buffer> {
    // Between threads, a Buffer becomes a plain Uint8Array.
    return Buffer.from((await this.put(question, [question.stretches.buffer])).buffer);
  }
}
