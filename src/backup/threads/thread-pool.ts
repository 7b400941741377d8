import { createRequire } from "node:module";
import { type Transferable, Worker } from "node:worker_threads";
import type { BackupError } from "../base/errors.js";

/** What goes to a thread: a question, or a notice that wants no answer. */
export type ThreadMessage<Question, Notice> =
  | { readonly id: number; readonly question: Question }
  | { readonly notice: Notice };

export type ThreadReply<Answer> =
  | { readonly id: number; readonly answer: Answer }
  | { readonly id: number; readonly failure: unknown };

export interface ThreadService<Question, Answer, Notice> {
  /** May be called again before it has answered. */
  answer(question: Question): Answer | Promise<Answer>;
  /** Memory of the answer that is handed over, not copied. */
  transfer?(answer: Answer): readonly Transferable[];
  onNotice?(notice: Notice): void;
  /** Gives back what it holds. A thread needs no such thing: it ends. */
  close?(): Promise<void>;
}

/** Whoever can be asked, whichever thread it is that answers. */
export interface Answering<Question, Answer, Notice> {
  /** Makes ready, which may take a while, before there is anything to ask. */
  start(): void;
  /**
   * @param transfer memory of the question that is the answering thread's from here on
   * @throws {BackupError} it could not be answered, a thread was lost, or `close` was called
   */
  ask(question: Question, transfer: readonly Transferable[]): Promise<Answer>;
  /** Tells all that answer. */
  notify(notice: Notice): void;
  /** The end; what was asked and isn't answered fails with `reason`. May be called again. */
  close(reason: BackupError): Promise<void>;
}

export interface ThreadPoolOptions {
  /** The threads' file: a path, or one of the package's imports (`#digest-worker`). */
  readonly script: string;
  /** How many threads there may be. */
  readonly most: number;
  /** What each is started with. */
  readonly workerData?: unknown;
  /** What a thread's JavaScript may hold, without buffers. */
  readonly oldGenerationMb?: number | undefined;
  /** A thread is lost; the reason is the end of a sentence. */
  lost(reason: string, cause?: unknown): BackupError;
  /** A question could not be answered. Errors lose their class and code on the way between threads. */
  failed(failure: unknown): BackupError;
}

/** Plenty: a thread keeps next to nothing. With a small young generation it cleans up early. */
const OLD_GENERATION_MB = 32;
const YOUNG_GENERATION_MB = 2;

interface Waiting<Answer> {
  resolve(answer: Answer): void;
  reject(error: BackupError): void;
}

interface Thread<Answer> {
  readonly worker: Worker;
  /** Questions that were handed over, by their number. */
  readonly waiting: Map<number, Waiting<Answer>>;
}

/**
 * Threads that answer questions (`serve` in `thread-side.ts` is their side). They are started when there is work, and
 * don't keep the process alive when there is none. Questions are handed over at once: how many are under way is for
 * the caller to bound.
 */
export class ThreadPool<Question, Answer, Notice = never>
  implements Answering<Question, Answer, Notice>, AsyncDisposable
{
  readonly #options: ThreadPoolOptions;
  readonly #threads: Thread<Answer>[] = [];
  #questions = 0;
  /** Once a thread is lost nothing is certain any more: all questions fail, and so do those to come. */
  #failure: BackupError | undefined;

  constructor(options: ThreadPoolOptions) {
    this.#options = options;
  }

  /** Starts all threads. */
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
    const isRoom = this.#threads.length < this.#options.most;
    return idlest.waiting.size > 0 && isRoom ? this.#start() : idlest;
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

  /** The first failure counts: what comes after it is its consequence. */
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
