import { availableParallelism } from "node:os";
import { BackupError, messageOf } from "../base/errors.js";
import { SameThread } from "../threads/same-thread.js";
import { type Answering, ThreadPool } from "../threads/thread-pool.js";
import {
  type ForgottenImage,
  type VerifyAnswer,
  type VerifyQuestion,
  VerifyService,
} from "./verify-service.js";

/** Each thread takes some 15 MiB; this many read as fast as memory allows. */
const MAX_THREADS = 16;

/** Starting threads takes as long as reading this many bytes. */
const FEW_BYTES = 24 * 1024 * 1024;

/** Threads that read images and compare them with their digests, one for each processor. */
export class VerifyThreads implements AsyncDisposable {
  readonly most = Math.min(availableParallelism(), MAX_THREADS);
  readonly #answering: Answering<VerifyQuestion, VerifyAnswer, ForgottenImage>;

  /** @param bytes the most bytes that will be read */
  constructor(bytes: number) {
    const failed = (failure: unknown): BackupError =>
      problem(`an image could not be verified: ${messageOf(failure)}`, failure);
    this.#answering =
      bytes <= FEW_BYTES
        ? new SameThread(new VerifyService(), { failed })
        : new ThreadPool({
            script: "#verify-worker",
            most: this.most,
            lost: (reason, cause) => problem(`a thread that verifies has ended: ${reason}`, cause),
            failed,
          });
  }

  /**
   * Sends a question to a thread. Its digests are transferred and can't be used afterwards.
   * @throws {BackupError} a thread has ended, or failed for a reason other than damage
   */
  ask(question: VerifyQuestion): Promise<VerifyAnswer> {
    return this.#answering.ask(question, [question.digests.buffer]);
  }

  forget(path: string): void {
    this.#answering.notify(path);
  }

  /** Ends the threads; unanswered questions fail. May be called again. */
  close(): Promise<void> {
    return this.#answering.close(problem("the work was given up"));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function problem(message: string, cause?: unknown): BackupError {
  return new BackupError("E_VERIFY_THREAD", message, { cause });
}
