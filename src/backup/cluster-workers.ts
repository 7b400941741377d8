import { createRequire } from "node:module";
import { type ResourceLimits, Worker } from "node:worker_threads";
import type { ClusterJob, ClusterResult } from "./cluster-work.js";
import type { JobMessage, ResultMessage } from "./cluster-worker.js";
import { BackupError } from "./errors.js";

export interface ClusterWorkersOptions {
  /**
   * Default: one. It digests, and has libuv's threads compress up to four jobs at once, which keeps four processors busy;
   * another was measured to gain nothing on two, and takes 25 MiB.
   */
  readonly threads?: number | undefined;
  /** The thread's file, in place of the package's own. */
  readonly path?: string | undefined;
  /** What a thread's JavaScript may hold, without buffers. */
  readonly oldGenerationMb?: number | undefined;
}

/** Plenty: a thread keeps next to nothing. With a small young generation it cleans up early. */
const OLD_GENERATION_MB = 32;
const YOUNG_GENERATION_MB = 2;

interface Waiting {
  resolve(result: ClusterResult): void;
  reject(error: BackupError): void;
}

interface Thread {
  readonly worker: Worker;
  /** Jobs that were handed over, by their number. */
  readonly waiting: Map<number, Waiting>;
}

/**
 * Threads that digest and compress clusters. They are started when there is work, and don't keep the process alive
 * when there is none. Jobs are handed over at once: how many are under way is for the caller to bound.
 */
export class ClusterWorkers implements AsyncDisposable {
  readonly #maxThreads: number;
  readonly #path: string | undefined;
  readonly #resourceLimits: ResourceLimits;
  readonly #threads: Thread[] = [];
  #jobs = 0;
  /** Once a thread is lost nothing is certain any more: all jobs fail, and so do those to come. */
  #failure: BackupError | undefined;

  constructor({ threads, path, oldGenerationMb }: ClusterWorkersOptions = {}) {
    this.#maxThreads = threads ?? 1;
    this.#path = path;
    this.#resourceLimits = {
      maxOldGenerationSizeMb: oldGenerationMb ?? OLD_GENERATION_MB,
      maxYoungGenerationSizeMb: YOUNG_GENERATION_MB,
    };
  }

  /**
   * Takes over the job's buffer, which can't be used before the result brings it back.
   * @throws {BackupError} the job failed, a thread ended, or `close` was called
   */
  run(job: ClusterJob): Promise<ClusterResult> {
    return new Promise((resolve, reject) => {
      if (this.#failure) {
        reject(this.#failure);
        return;
      }
      const { worker, waiting } = this.#leastBusy();
      const id = this.#jobs++;
      if (waiting.size === 0) worker.ref();
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, job } satisfies JobMessage, [job.buffer]);
    });
  }

  /** Ends the threads; jobs under way fail. May be called again. */
  async close(): Promise<void> {
    this.#fail(
      new BackupError("E_CLUSTER_WORKER", "the threads that digest and compress clusters were closed"),
    );
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #leastBusy(): Thread {
    const [first, ...others] = this.#threads;
    if (first === undefined) return this.#start();
    const idlest = others.reduce((a, b) => (b.waiting.size < a.waiting.size ? b : a), first);
    return idlest.waiting.size > 0 && this.#threads.length < this.#maxThreads ? this.#start() : idlest;
  }

  #start(): Thread {
    const path = this.#path ?? createRequire(import.meta.url).resolve("#cluster-worker");
    const worker = new Worker(path, { resourceLimits: this.#resourceLimits });
    const thread: Thread = { worker, waiting: new Map() };
    worker.unref();
    worker.on("message", (message: ResultMessage) => this.#settle(thread, message));
    worker.on("error", (cause) =>
      this.#fail(ended(cause instanceof Error ? cause.message : String(cause), cause)),
    );
    worker.on("messageerror", (cause) => this.#fail(ended("its answer can't be read", cause)));
    worker.on("exit", (code) => this.#fail(ended(`exit code ${code}`)));
    this.#threads.push(thread);
    return thread;
  }

  #settle({ worker, waiting }: Thread, message: ResultMessage): void {
    const job = waiting.get(message.id);
    waiting.delete(message.id);
    if (waiting.size === 0) worker.unref();
    if ("failure" in message) job?.reject(jobFailed(message.failure));
    else {
      // A Buffer arrives as a plain Uint8Array.
      const digests = Buffer.from(message.result.digests.buffer);
      job?.resolve({ ...message.result, digests });
    }
  }

  /** The first failure counts: what comes after it is its consequence. */
  #fail(failure: BackupError): void {
    if (this.#failure) return;
    this.#failure = failure;
    for (const { worker, waiting } of this.#threads) {
      worker.unref();
      for (const { reject } of waiting.values()) reject(failure);
      waiting.clear();
    }
  }
}

function ended(reason: string, cause?: unknown): BackupError {
  const message = `a thread that digests and compresses clusters ended: ${reason}`;
  return new BackupError("E_CLUSTER_WORKER", message, { cause });
}

/** Errors lose their class and code on the way between threads; the message stays. */
function jobFailed(cause: unknown): BackupError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new BackupError("E_CLUSTER_WORKER", `clusters could not be digested or compressed: ${reason}`, {
    cause,
  });
}
