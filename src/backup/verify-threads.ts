import { availableParallelism } from "node:os";
import type { Damage } from "./damage.js";
import { BackupError } from "./errors.js";
import type { ClusterRun } from "./image/image.js";
import type { StoredImage } from "./proven-images.js";
import { reasonOf, ThreadPool } from "./thread-pool.js";

export interface VerifyQuestion {
  readonly image: StoredImage;
  /** In guest order; those that are zero are looked at byte by byte. */
  readonly runs: readonly ClusterRun[];
  /** What the stored clusters of the runs must be, one after the other. */
  readonly digests: Uint8Array<ArrayBuffer>;
}

/** In guest order. */
export type VerifyAnswer = readonly Damage[];

/** The image of this path is done with. */
export type ForgottenImage = string;

/** Each takes some 15 MiB; so many read as fast as memory does. */
const MAX_THREADS = 16;

/** Threads that read images and hold them against their digests, as many as there are processors. */
export class VerifyThreads implements AsyncDisposable {
  readonly most = Math.min(availableParallelism(), MAX_THREADS);
  readonly #pool = new ThreadPool<VerifyQuestion, VerifyAnswer, ForgottenImage>({
    script: "#verify-worker",
    most: this.most,
    lost: (reason, cause) => problem(`a thread that verifies has ended: ${reason}`, cause),
    failed: (failure) => problem(`an image could not be verified: ${reasonOf(failure)}`, failure),
  });

  /**
   * The question's digests belong to the thread from here on.
   * @throws {BackupError} a thread has ended, or something else than the image was in the way
   */
  ask(question: VerifyQuestion): Promise<VerifyAnswer> {
    return this.#pool.ask(question, [question.digests.buffer]);
  }

  forget(path: string): void {
    this.#pool.tell(path);
  }

  /** Ends the threads; what was asked and isn't answered fails. May be called again. */
  close(): Promise<void> {
    return this.#pool.close(problem("the work was given up"));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function problem(message: string, cause?: unknown): BackupError {
  return new BackupError("E_VERIFY_THREAD", message, { cause });
}
