import { setImmediate as turn } from "node:timers/promises";
import type { Transferable } from "node:worker_threads";
import { BackupError, messageOf } from "../base/errors.js";
import { together } from "../base/in-parallel.js";
import { SameThread } from "./same-thread.js";
import { ThreadPool, type ThreadPoolOptions, type ThreadService } from "./thread-pool.js";

interface ServiceThreadsOptions<Question, Answer, Notice>
  extends Pick<ThreadPoolOptions, "script" | "most" | "workerData" | "oldGenerationMb"> {
  /** The `code` of the errors. */
  readonly code: string;
  /** The `code` of the error for a question that failed; default: `code`. */
  readonly failedCode?: string | undefined;
  /** The message for a lost thread, without the reason: "a thread that copies has ended". */
  readonly lost: string;
  /** The message for a question that failed, without the reason: "an image could not be copied". */
  readonly failed: string;
  /** The message for questions that are unanswered when the threads are closed. */
  readonly closed: string;
  /**
   * If set, it answers on the caller's own thread and no thread is started. For work that takes less time
   * than the start of a thread.
   */
  readonly sameThread?: ThreadService<Question, Answer, Notice> | undefined;
  /** How many questions `sameThread` answers at the same time; default: one after the other. */
  readonly atOnce?: number | undefined;
  /** Which questions `sameThread` answers, asked once for each; by default all. Threads answer the others. */
  readonly isForSameThread?: ((question: Question) => boolean) | undefined;
}

/** The threads for one kind of work. Each kind is a subclass, which adds its own method for questions. */
export abstract class ServiceThreads<Question, Answer, Notice = never> implements AsyncDisposable {
  /** The most threads that run at a time. */
  readonly most: number;
  readonly #sameThread: SameThread<Question, Answer, Notice> | undefined;
  /** Starts threads only when it gets questions. */
  readonly #pool: ThreadPool<Question, Answer, Notice>;
  readonly #isForSameThread: ((question: Question) => boolean) | undefined;
  readonly #closed: BackupError;

  constructor(options: ServiceThreadsOptions<Question, Answer, Notice>) {
    const { script, most, workerData, oldGenerationMb, code, failedCode = code, sameThread } = options;
    this.most = most;
    this.#closed = new BackupError(code, options.closed);
    const failed = (cause: unknown): BackupError =>
      new BackupError(failedCode, `${options.failed}: ${messageOf(cause)}`, { cause });
    const lost = (reason: string, cause?: unknown): BackupError =>
      new BackupError(code, `${options.lost}: ${reason}`, { cause });
    this.#sameThread = sameThread && new SameThread(sameThread, { failed, atOnce: options.atOnce });
    this.#pool = new ThreadPool({ script, most, workerData, oldGenerationMb, lost, failed });
    this.#isForSameThread = options.isForSameThread;
  }

  /** Starts the threads now, so that the first question doesn't wait for their start. */
  start(): void {
    if (!this.#sameThread || this.#isForSameThread) this.#pool.start();
  }

  /** How many questions the threads have not answered. */
  protected get waiting(): number {
    return this.#pool.waiting;
  }

  /**
   * Asks a question.
   * @param transfer memory of the question that is moved to the thread; the caller can't use it afterwards
   * @throws {BackupError} the question failed, a thread ended, or `close` was called
   */
  protected async put(question: Question, transfer: readonly Transferable[]): Promise<Answer> {
    const isForSameThread = this.#isForSameThread?.(question) ?? true;
    const sameThread = isForSameThread ? this.#sameThread : undefined;
    if (!sameThread) return await this.#pool.ask(question, transfer);
    const answer = await sameThread.ask(question);
    // What threads have answered meanwhile is heard of only when the event loop gets a turn.
    if (this.#pool.waiting > 0) await turn();
    return answer;
  }

  /**
   * Asks `sameThread` and all running threads the same question. Each answers it after those before it,
   * unless it answers several at the same time.
   * @throws {BackupError} as {@link put}
   */
  protected async putToAll(question: Question): Promise<Answer[]> {
    const here = this.#sameThread ? [this.#sameThread.ask(question)] : [];
    return (await together(Promise.all(here), this.#pool.askAll(question))).flat();
  }

  /** Sends a notice to all threads. */
  notify(notice: Notice): void {
    this.#sameThread?.notify(notice);
    this.#pool.notify(notice);
  }

  /** Ends the threads; unanswered questions fail. May be called again. */
  async close(): Promise<void> {
    await Promise.all([this.#sameThread?.close(this.#closed), this.#pool.close(this.#closed)]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
