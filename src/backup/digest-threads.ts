import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "./digest.js";
import { BackupError } from "./errors.js";

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

export type DigestMessage =
  | { readonly id: number; readonly question: DigestQuestion }
  | { readonly forget: string };

export type DigestAnswer =
  | { readonly id: number; readonly digests: Uint8Array<ArrayBuffer> }
  | { readonly id: number; readonly problem: string };

/** More of them read no faster. */
const MAX_THREADS = 4;
/** Plenty: a thread keeps next to nothing. With a small young generation it cleans up early. */
const RESOURCE_LIMITS = { maxOldGenerationSizeMb: 32, maxYoungGenerationSizeMb: 2 };

interface Waiting {
  resolve(digests: Buffer): void;
  reject(error: Error): void;
}

interface Thread {
  readonly worker: Worker;
  readonly waiting: Map<number, Waiting>;
}

/** Threads that read files and digest them, shared by the files of a point. They are started when there is work. */
export class DigestThreads implements AsyncDisposable {
  readonly algorithm: DigestAlgorithm;
  /** One processor is left for whoever asks. */
  readonly most = Math.max(1, Math.min(availableParallelism() - 1, MAX_THREADS));
  readonly #threads: Thread[] = [];
  #questions = 0;
  #failure: BackupError | undefined;

  constructor(algorithm: DigestAlgorithm) {
    this.algorithm = algorithm;
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
  ask(question: DigestQuestion): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) {
        reject(this.#failure);
        return;
      }
      const { worker, waiting } = this.#leastBusy();
      const id = this.#questions++;
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, question } satisfies DigestMessage, [question.stretches.buffer]);
    });
  }

  /** The file is done with. */
  forget(path: string): void {
    for (const { worker } of this.#threads) worker.postMessage({ forget: path } satisfies DigestMessage);
  }

  /** Ends the threads; what was asked and isn't answered fails. May be called again. */
  async close(): Promise<void> {
    this.#fail(new BackupError("E_DIGEST_THREAD", "the digests were given up"));
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #leastBusy(): Thread {
    const [first, ...others] = this.#threads;
    if (first === undefined) return this.#start();
    const idlest = others.reduce((a, b) => (b.waiting.size < a.waiting.size ? b : a), first);
    return idlest.waiting.size > 0 && this.#threads.length < this.most ? this.#start() : idlest;
  }

  #start(): Thread {
    const script = createRequire(import.meta.url).resolve("#digest-worker");
    const workerData: DigestWorkerData = { algorithm: this.algorithm };
    const worker = new Worker(script, { workerData, resourceLimits: RESOURCE_LIMITS });
    const thread: Thread = { worker, waiting: new Map() };
    worker.on("message", (answer: DigestAnswer) => settle(thread, answer));
    worker.on("error", (cause) => this.#fail(ended(cause instanceof Error ? cause.message : "", cause)));
    worker.on("messageerror", (cause) => this.#fail(ended("its answer can't be read", cause)));
    worker.on("exit", (code) => this.#fail(ended(`exit code ${code}`)));
    this.#threads.push(thread);
    return thread;
  }

  /** The first failure counts: what comes after it is its consequence. */
  #fail(failure: BackupError): void {
    if (this.#failure !== undefined) return;
    this.#failure = failure;
    for (const { waiting } of this.#threads) {
      for (const { reject } of waiting.values()) reject(failure);
      waiting.clear();
    }
  }
}

function settle({ waiting }: Thread, answer: DigestAnswer): void {
  const question = waiting.get(answer.id);
  waiting.delete(answer.id);
  if ("digests" in answer) question?.resolve(Buffer.from(answer.digests.buffer));
  else
    question?.reject(
      new BackupError("E_DIGEST_READ", `what was stored can't be digested: ${answer.problem}`),
    );
}

function ended(reason: string, cause?: unknown): BackupError {
  return new BackupError("E_DIGEST_THREAD", `the thread that digests has ended: ${reason}`, { cause });
}
