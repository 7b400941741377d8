import { availableParallelism } from "node:os";
import { BackupError, messageOf } from "../base/errors.js";
import { ThreadPool } from "../threads/thread-pool.js";
import type { ClusterJob, ClusterResult } from "./cluster-job.js";

export interface CompressThreadsOptions {
  /**
   * Default: one where there are up to four processors. It digests, and has libuv's threads compress up to four jobs at once;
   * another was measured to gain nothing on two, and takes 25 MiB. Where there are more, one for each that compresses by itself.
   */
  readonly threads?: number | undefined;
  /** The thread's file, in place of the package's own. */
  readonly path?: string | undefined;
  /** What a thread's JavaScript may hold, without buffers. */
  readonly oldGenerationMb?: number | undefined;
}

/** libuv has as many threads for the whole process. */
const UV_THREADS = 4;
const MOST_THREADS = 16;

/**
 * Threads that digest and compress clusters. They are started when there is work, and don't keep the process alive
 * when there is none. Jobs are handed over at once: how many are under way is for the caller to bound.
 */
export class CompressThreads implements AsyncDisposable {
  readonly #pool: ThreadPool<ClusterJob, ClusterResult>;

  constructor({ threads, path, oldGenerationMb }: CompressThreadsOptions = {}) {
    const processors = Math.min(availableParallelism(), MOST_THREADS);
    const most = threads ?? (processors > UV_THREADS ? processors : 1);
    this.#pool = new ThreadPool({
      script: path ?? "#compress-worker",
      most,
      workerData: { ownThread: most > 1 } satisfies CompressThreadData,
      oldGenerationMb,
      lost: (reason, cause) =>
        problem(`a thread that digests and compresses clusters ended: ${reason}`, cause),
      failed: (cause) => problem(`clusters could not be digested or compressed: ${messageOf(cause)}`, cause),
    });
  }

  /**
   * Takes over the job's buffer, which can't be used before the result brings it back.
   * @throws {BackupError} the job failed, a thread ended, or `close` was called
   */
  async run(job: ClusterJob): Promise<ClusterResult> {
    const result = await this.#pool.ask(job, [job.buffer]);
    // A Buffer arrives as a plain Uint8Array.
    return { ...result, digests: Buffer.from(result.digests.buffer) };
  }

  /** Ends the threads; jobs under way fail. May be called again. */
  close(): Promise<void> {
    return this.#pool.close(problem("the threads that digest and compress clusters were closed"));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function problem(message: string, cause?: unknown): BackupError {
  return new BackupError("E_CLUSTER_WORKER", message, { cause });
}

/** What a thread that compresses clusters is told when it starts. */
export interface CompressThreadData {
  /** It compresses by itself, one cluster at a time; otherwise libuv's threads do, four at a time. */
  readonly ownThread: boolean;
}
