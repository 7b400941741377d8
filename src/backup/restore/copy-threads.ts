import { availableParallelism } from "node:os";
import { BackupError, messageOf } from "../base/errors.js";
import { SameThread } from "../threads/same-thread.js";
import { type Answering, ThreadPool } from "../threads/thread-pool.js";
import {
  type CopyAnswer,
  type CopyFailure,
  type CopyQuestion,
  CopyService,
  type ForgottenFile,
} from "./copy-service.js";

/** While one writes the other reads and digests: writers of one file take turns. Each takes 10 to 25 MiB. */
const MOST_THREADS = 2;
/** Copying so much takes no longer than starting threads for it. */
const FEW_BYTES = 32 * 1024 * 1024;

/**
 * Threads that copy out of images what their digests prove: read, digest and write while the bytes are in the
 * processor's cache. Whoever asks only tells them where things are.
 */
export class CopyThreads implements AsyncDisposable {
  readonly most = Math.min(availableParallelism(), MOST_THREADS);
  readonly #answering: Answering<CopyQuestion, CopyAnswer, ForgottenFile>;

  /** @param bytes of data that there are to copy, at the most */
  constructor(bytes: number) {
    const failed = (failure: unknown): BackupError =>
      problem(`an image could not be copied: ${messageOf(failure)}`, failure);
    this.#answering =
      bytes <= FEW_BYTES
        ? new SameThread(new CopyService(), { failed })
        : new ThreadPool({
            script: "#copy-worker",
            most: this.most,
            lost: (reason, cause) => problem(`a thread that copies has ended: ${reason}`, cause),
            failed,
          });
  }

  /** Starts the threads, which takes them a while, before there is anything to ask. */
  start(): void {
    this.#answering.start();
  }

  /**
   * The question's digests belong to the thread from here on.
   * @returns for each slot of the target, whether anything was stored there; or what is damaged, in which of the images
   * @throws {BackupError} the file system's failure, with its code; or a thread has ended
   */
  async ask(question: CopyQuestion): Promise<Exclude<CopyAnswer, { failure: CopyFailure }>> {
    const answer = await this.#answering.ask(question, [question.digests.buffer]);
    if (!("failure" in answer)) return answer;
    const { code, message, details } = answer.failure;
    throw new BackupError(code, message, { details: { ...details } });
  }

  forget(path: string): void {
    this.#answering.notify(path);
  }

  /** Ends the threads; what was asked and isn't answered fails. May be called again. */
  close(): Promise<void> {
    return this.#answering.close(problem("the copying was given up"));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function problem(message: string, cause?: unknown): BackupError {
  return new BackupError("E_COPY_THREAD", message, { cause });
}
