import { availableParallelism } from "node:os";
import { BackupError, messageOf } from "../base/errors.js";
import { ThreadPool } from "../threads/thread-pool.js";
import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "./digest.js";

/** What a thread is started with. */
export interface DigestWorkerData {
  readonly algorithm: DigestAlgorithm;
}

/**
 * Stretches of a file, three numbers each, bytes: position, length, unit. There is one digest for each `unit` bytes, the
 * last of a stretch being of what is left. With unit 0 a stretch is the beginning of what the next one goes on with.
 */
export interface DigestQuestion {
  readonly path: string;
  readonly stretches: Float64Array<ArrayBuffer>;
  /** How many digests they come to. */
  readonly digests: number;
}

/** One after the other. */
export type Digests = Uint8Array<ArrayBuffer>;

/** The file of this path is done with. */
export type ForgottenPath = string;

/** More of them read no faster. */
const MAX_THREADS = 4;

/** Threads that read files and digest them, shared by the files of a point. They are started when there is work. */
export class DigestThreads implements AsyncDisposable {
  readonly algorithm: DigestAlgorithm;
  /** One processor is left for whoever asks. */
  readonly most = Math.max(1, Math.min(availableParallelism() - 1, MAX_THREADS));
  readonly #pool: ThreadPool<DigestQuestion, Digests, ForgottenPath>;

  constructor(algorithm: DigestAlgorithm) {
    this.algorithm = algorithm;
    this.#pool = new ThreadPool({
      script: "#digest-worker",
      most: this.most,
      workerData: { algorithm } satisfies DigestWorkerData,
      lost: (reason, cause) =>
        new BackupError("E_DIGEST_THREAD", `the thread that digests has ended: ${reason}`, { cause }),
      failed: (failure) =>
        new BackupError("E_DIGEST_READ", `what was stored can't be digested: ${messageOf(failure)}`),
    });
  }

  /** Bytes of one digest. */
  get digestSize(): number {
    return DIGEST_ALGORITHMS[this.algorithm].bytes;
  }

  /**
   * The question's stretches belong to the thread from here on.
   * @returns the digests, one after the other
   * @throws {BackupError} the file can't be read, or a thread has died
   */
  async ask(question: DigestQuestion): Promise<Buffer> {
    // A Buffer arrives as a plain Uint8Array.
    return Buffer.from((await this.#pool.ask(question, [question.stretches.buffer])).buffer);
  }

  /** The file is done with. */
  forget(path: string): void {
    this.#pool.notify(path);
  }

  /** Ends the threads; what was asked and isn't answered fails. May be called again. */
  close(): Promise<void> {
    return this.#pool.close(new BackupError("E_DIGEST_THREAD", "the digests were given up"));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
