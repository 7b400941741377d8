/**
 * Threads that work beside the main one. This room knows how threads are started, asked and ended, and nothing
 * of the work: that is a `ThreadService` in the room that needs it.
 *
 * Read this file first: `ThreadPool` starts the threads and asks them. thread-side.ts is the same in the thread,
 * same-thread.ts answers without a thread, and service-threads.ts is the base of the four kinds of threads
 * (compress-threads.ts, digest-threads.ts, verify-threads.ts, copy-threads.ts).
 */

import { createRequire } from "node:module";
import { type Transferable, Worker } from "node:worker_threads";
import type { BackupError } from "../base/errors.js";

/** A message to a thread: a question, or a notice, which gets no answer. */
export type ThreadMessage<Question, Notice> =
  | { readonly id: number; readonly question: Question }
  | { readonly notice: Notice };

export type ThreadReply<Answer> =
  | { readonly id: number; readonly answer: Answer }
  | { readonly id: number; readonly failure: unknown };

/** The work of a thread. */
export interface ThreadService<Question, Answer, Notice> {
  /** Not called again before it has answered, unless `answerQuestions` was told otherwise. */
  answer(question: Question): Answer | Promise<Answer>;
  /** Memory of the answer that is handed over instead of copied. */
  transfer?(answer: Answer): readonly Transferable[];
  onNotice?(notice: Notice): void | Promise<void>;
  /** Closes what the service has open. Called only on the caller's own thread: other threads just end. */
  close?(): Promise<void>;
}

/** Answers questions, on other threads or on the caller's own. */
export interface Answering<Question, Answer, Notice> {
  /** Starts the threads before the first question, because a start takes a while. */
  start(): void;
  /**
   * @param transfer memory of the question, which the caller can't use afterwards
   * @throws {BackupError} the question can't be answered, a thread was lost, or `close` was called
   */
  ask(question: Question, transfer: readonly Transferable[]): Promise<Answer>;
  /** Sends a notice to all threads. */
  notify(notice: Notice): void;
  /** Ends the threads; unanswered questions fail with `reason`. May be called again. */
  close(reason: BackupError): Promise<void>;
}

export interface ThreadPoolOptions {
  /** The threads' script: a path, or one of the package's imports (`#digest-worker`). */
  readonly script: string;
  /** The most threads that will run. */
  readonly most: number;
  /** The `workerData` of each thread. */
  readonly workerData?: unknown;
  /** The limit of a thread's JavaScript heap in MiB, without buffers; default 32. */
  readonly oldGenerationMb?: number | undefined;
  /** Makes the error for a lost thread; the reason is the end of a sentence. */
  lost(reason: string, cause?: unknown): BackupError;
  /** Makes the error for a question that failed. Between threads, errors lose their class and code. */
  failed(failure: unknown): BackupError;
}

/** A thread keeps almost nothing, so this is enough. A small young generation is collected early. */
const OLD_GENERATION_MB = 32;
const YOUNG_GENERATION_MB = 2;

interface Waiting<Answer> {
  resolve(answer: Answer): void;
  reject(error: BackupError): void;
}

interface Thread<Answer> {
  readonly worker: Worker;
  /** Unanswered questions, by their number. */
  readonly waiting: Map<number, Waiting<Answer>>;
}

/**
 * Threads that answer questions; `answerQuestions` in thread-side.ts is their side. They start when there is
 * work, and don't keep the process alive when there is none. A question goes to a thread at once: the caller
 * limits how many are unanswered.
 */
export class ThreadPool<Question, Answer, Notice = never>
  implements Answering<Question, Answer, Notice>, AsyncDisposable
{
  readonly #options: ThreadPoolOptions;
  readonly #threads: Thread<Answer>[] = [];
  #questions = 0;
  /** After a thread is lost, all unanswered and all later questions fail. */
  #failure: BackupError | undefined;

  constructor(options: ThreadPoolOptions) {
    this.#options = options;
  }

  start(): void {
    if (this.#failure !== undefined) return;
    while (this.#threads.length < this.#options.most) this.#start();
  }

  ask(question: Question, transfer: readonly Transferable[]): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) {
        reject(this.#failure);
        return;
      }
      const { worker, waiting } = this.#leastBusy();
      const id = this.#questions++;
      if (waiting.size === 0) worker.ref();
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, question } satisfies ThreadMessage<Question, Notice>, transfer);
    });
  }

  notify(notice: Notice): void {
    for (const { worker } of this.#threads)
      worker.postMessage({ notice } satisfies ThreadMessage<Question, Notice>);
  }

  async close(reason: BackupError): Promise<void> {
    this.#fail(reason);
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close(this.#options.lost("it was closed"));
  }

  #leastBusy(): Thread<Answer> {
    const [first, ...others] = this.#threads;
    if (first === undefined) return this.#start();
    const idlest = others.reduce((a, b) => (b.waiting.size < a.waiting.size ? b : a), first);
    const mayStart = this.#threads.length < this.#options.most;
    return idlest.waiting.size > 0 && mayStart ? this.#start() : idlest;
  }

  #start(): Thread<Answer> {
    const { script, workerData, oldGenerationMb = OLD_GENERATION_MB, lost } = this.#options;
    const path = script.startsWith("#") ? createRequire(import.meta.url).resolve(script) : script;
    const resourceLimits = {
      maxOldGenerationSizeMb: oldGenerationMb,
      maxYoungGenerationSizeMb: YOUNG_GENERATION_MB,
    };
    const worker = new Worker(path, { workerData, resourceLimits });
    const thread: Thread<Answer> = { worker, waiting: new Map() };
    worker.unref();
    worker.on("message", (reply: ThreadReply<Answer>) => this.#settle(thread, reply));
    worker.on("error", (cause) => {
      this.#fail(lost(cause instanceof Error ? cause.message : String(cause), cause));
    });
    worker.on("messageerror", (cause) => this.#fail(lost("its answer can't be read", cause)));
    worker.on("exit", (code) => this.#fail(lost(`exit code ${code}`)));
    this.#threads.push(thread);
    return thread;
  }

  #settle({ worker, waiting }: Thread<Answer>, reply: ThreadReply<Answer>): void {
    const question = waiting.get(reply.id);
    waiting.delete(reply.id);
    if (waiting.size === 0) worker.unref();
    if ("failure" in reply) question?.reject(this.#options.failed(reply.failure));
    else question?.resolve(reply.answer);
  }

  /** The first failure counts: later ones are its consequences. */
  #fail(failure: BackupError): void {
    if (this.#failure !== undefined) return;
    this.#failure = failure;
    for (const { worker, waiting } of this.#threads) {
      worker.unref();
      for (const { reject } of waiting.values()) reject(failure);
      waiting.clear();
    }
  }
}
