/**
 * Threads that work beside the main one. This room starts threads, sends them questions, receives the answers
 * and ends the threads.
 *
 * Read this file first: `ThreadPool` is the caller's side. Then read thread-side.ts (the thread's side),
 * same-thread.ts (the same interface without a thread) and service-threads.ts, the base class of the five
 * kinds of threads: compress-threads.ts, digest-threads.ts, verify-threads.ts, copy-threads.ts and
 * merge-threads.ts in other rooms. event-loop-turn.ts is for synchronous work on the main thread. The work
 * itself is never here: it is a `ThreadService` in the room that needs it. Nothing here knows files, images
 * or NBD.
 */

import { createRequire } from "node:module";
import { type Transferable, Worker } from "node:worker_threads";
import type { BackupError } from "../base/errors.js";

/** A message to a thread: a question, which gets a reply with the same `id`, or a notice, which gets none. */
export type ThreadMessage<Question, Notice> =
  | { readonly id: number; readonly question: Question }
  | { readonly notice: Notice };

/** A thread's reply to the question with this `id`. */
export type ThreadReply<Answer> =
  | { readonly id: number; readonly answer: Answer }
  | { readonly id: number; readonly failure: unknown };

/** The work of a thread: how it answers questions. */
export interface ThreadService<Question, Answer, Notice> {
  /** Called for one question at a time, unless `answerQuestions` was given a larger `atOnce`. */
  answer(question: Question): Answer | Promise<Answer>;
  /** Memory of the answer that is moved to the caller's thread instead of copied. */
  transfer?(answer: Answer): readonly Transferable[];
  onNotice?(notice: Notice): void | Promise<void>;
  /**
   * Ends what may take long of the questions under way. Called only by `SameThread`, before it waits for
   * their end.
   */
  stop?(): void;
  /** Closes the service's files. Called only by `SameThread`: other threads are terminated. */
  close?(): Promise<void>;
}

/** Answers questions, on other threads or on the caller's own thread. */
export interface Answering<Question, Answer, Notice> {
  /** Starts the threads now, so that the first question doesn't wait for their start. */
  start(): void;
  /**
   * Asks a question.
   * @param transfer memory of the question that is moved to the thread; the caller can't use it afterwards
   * @throws {BackupError} the question failed, a thread was lost, or `close` was called
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
  /** The most threads that run at a time. */
  readonly most: number;
  /** The `workerData` of each thread. */
  readonly workerData?: unknown;
  /** The limit of a thread's JavaScript heap in MiB, without buffers; default 32. */
  readonly oldGenerationMb?: number | undefined;
  /** Makes the error for a lost thread. `reason` is the end of a sentence. */
  lost(reason: string, cause?: unknown): BackupError;
  /** Makes the error for a question that failed. An error from a thread has lost its class and code. */
  failed(failure: unknown): BackupError;
}

/** Limits of a thread's heap, in MiB. Threads keep little; a small young generation is collected early. */
const OLD_GENERATION_MB = 32;
const YOUNG_GENERATION_MB = 2;

interface Waiting<Answer> {
  resolve(answer: Answer): void;
  reject(error: BackupError): void;
}

interface Thread<Answer> {
  readonly worker: Worker;
  /** Unanswered questions, by their `id`. */
  readonly waiting: Map<number, Waiting<Answer>>;
}

/**
 * Threads that answer questions; `answerQuestions` in thread-side.ts is their side. Without `start`, a thread
 * is started when there is a question and all running threads are busy. A thread keeps the process alive only
 * while it has unanswered questions. A question is sent to a thread immediately, so the caller limits how
 * many are unanswered.
 */
export class ThreadPool<Question, Answer, Notice = never>
  implements Answering<Question, Answer, Notice>, AsyncDisposable
{
  readonly #options: ThreadPoolOptions;
  readonly #threads: Thread<Answer>[] = [];
  /** Number of questions so far, which is the `id` of the next. */
  #questions = 0;
  /** Set when a thread is lost or the pool is closed: all unanswered and all later questions fail with it. */
  #failure: BackupError | undefined;

  constructor(options: ThreadPoolOptions) {
    this.#options = options;
  }

  /** How many questions are unanswered. */
  get waiting(): number {
    return this.#threads.reduce((sum, { waiting }) => sum + waiting.size, 0);
  }

  start(): void {
    if (this.#failure !== undefined) return;
    while (this.#threads.length < this.#options.most) this.#start();
  }

  async ask(question: Question, transfer: readonly Transferable[]): Promise<Answer> {
    if (this.#failure !== undefined) throw this.#failure;
    return await this.#put(this.#leastBusy(), question, transfer);
  }

  /** Asks all running threads the same question. */
  async askAll(question: Question): Promise<Answer[]> {
    if (this.#failure !== undefined) throw this.#failure;
    return await Promise.all(this.#threads.map((thread) => this.#put(thread, question, [])));
  }

  #put(
    { worker, waiting }: Thread<Answer>,
    question: Question,
    transfer: readonly Transferable[],
  ): Promise<Answer> {
    return new Promise((resolve, reject) => {
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
    // A thread that is being ended keeps the process alive until it has: who closes the pool waits for that.
    if (waiting.size === 0 && this.#failure === undefined) worker.unref();
    if ("failure" in reply) question?.reject(this.#options.failed(reply.failure));
    else question?.resolve(reply.answer);
  }

  /** Keeps the first failure, because later ones are its consequences. */
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
