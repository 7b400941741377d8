import { availableParallelism } from "node:os";
import { BackupError } from "../base/errors.js";
import { SameThread } from "../threads/same-thread.js";
import { type Answering, reasonOf, ThreadPool } from "../threads/thread-pool.js";
import {
  type ForgottenImage,
  type VerifyAnswer,
  type VerifyQuestion,
  VerifyService,
} from "./verify-service.js";

/** Each takes some 15 MiB; so many read as fast as memory does. */
const MAX_THREADS = 16;

/** Reading so much takes no longer than starting threads for it. */
const FEW_BYTES = 24 * 1024 * 1024;

/** Threads that read images and hold them against their digests, as many as there are processors. */
export class VerifyThreads implements AsyncDisposable {
  readonly most = Math.min(availableParallelism(), MAX_THREADS);
  readonly #answering: Answering<VerifyQuestion, VerifyAnswer, ForgottenImage>;

  /** @param bytes that there are to read, at the most */
  constructor(bytes: number) {
    const failed = (failure: unknown): BackupError =>
      problem(`an image could not be verified: ${reasonOf(failure)}`, failure);
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
   * The question's digests belong to the thread from here on.
   * @throws {BackupError} a thread has ended, or something else than the image was in the way
   */
  ask(question: VerifyQuestion): Promise<VerifyAnswer> {
    return this.#answering.ask(question, [question.digests.buffer]);
  }

  forget(path: string): void {
    this.#answering.notify(path);
  }

  /** Ends the threads; what was asked and isn't answered fails. May be called again. */
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
