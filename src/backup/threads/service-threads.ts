import type { Transferable } from "node:worker_threads";
import { BackupError, messageOf } from "../base/errors.js";
import { SameThread } from "./same-thread.js";
import { type Answering, ThreadPool, type ThreadPoolOptions, type ThreadService } from "./thread-pool.js";

interface ServiceThreadsOptions<Question, Answer, Notice>
  extends Pick<ThreadPoolOptions, "script" | "most" | "workerData" | "oldGenerationMb"> {
  /** Code of the errors. */
  readonly code: string;
  /** Code of the error for a question that failed, if it is another. */
  readonly failedCode?: string | undefined;
  /** What failed if a thread is lost, as the beginning of a sentence: "a thread that copies has ended". */
  readonly lost: string;
  /** What failed if a question can't be answered: "an image could not be copied". */
  readonly failed: string;
  /** The message of what is unanswered when the threads are closed. */
  readonly closed: string;
  /** Answers on the caller's own thread in place of others, for work that ends before a thread has started. */
  readonly sameThread?: ThreadService<Question, Answer, Notice> | undefined;
}

/** The threads of one kind of work. Each kind is a subclass with an `ask` of its own. */
export abstract class ServiceThreads<Question, Answer, Notice = never> implements AsyncDisposable {
  /** The most threads that will run. */
  readonly most: number;
  readonly #answering: Answering<Question, Answer, Notice>;
  readonly #closed: BackupError;

  constructor(options: ServiceThreadsOptions<Question, Answer, Notice>) {
    const { script, most, workerData, oldGenerationMb, code, failedCode = code, sameThread } = options;
    this.most = most;
    this.#closed = new BackupError(code, options.closed);
    const failed = (cause: unknown): BackupError =>
      new BackupError(failedCode, `${options.failed}: ${messageOf(cause)}`, { cause });
    const lost = (reason: string, cause?: unknown): BackupError =>
      new BackupError(code, `${options.lost}: ${reason}`, { cause });
    this.#answering = sameThread
      ? new SameThread(sameThread, { failed })
      : new ThreadPool({ script, most, workerData, oldGenerationMb, lost, failed });
  }

  /** Starts the threads before the first question, because a start takes a while. */
  start(): void {
    this.#answering.start();
  }

  /**
   * @param transfer memory of the question, which the caller can't use afterwards
   * @throws {BackupError} the question can't be answered, a thread has ended, or `close` was called
   */
  protected put(question: Question, transfer: readonly Transferable[]): Promise<Answer> {
    return this.#answering.ask(question, transfer);
  }

  /** Sends a notice to all threads. */
  notify(notice: Notice): void {
    this.#answering.notify(notice);
  }

  /** Ends the threads; unanswered questions fail. May be called again. */
  close(): Promise<void> {
    return this.#answering.close(this.#closed);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
