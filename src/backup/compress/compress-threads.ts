import { availableParallelism } from "node:os";
import { ServiceThreads } from "../threads/service-threads.js";
import type { ClusterJob, ClusterResult } from "./cluster-job.js";

interface CompressThreadsOptions {
  /**
   * Default: one thread on up to four processors. It digests, and libuv's threads compress up to four jobs at
   * once for it; a second thread was measured to gain nothing on two processors, and takes 25 MiB. On more
   * processors, one thread for each, and each compresses by itself.
   */
  readonly threads?: number | undefined;
  /** Path of the threads' script, in place of the package's own. */
  readonly path?: string | undefined;
  /** The limit of a thread's JavaScript heap in MiB, without buffers. */
  readonly oldGenerationMb?: number | undefined;
}

/** libuv's threads, in the whole process. */
const UV_THREADS = 4;
const MOST_THREADS = 16;

/** What a thread that compresses clusters is told when it starts. */
export interface CompressThreadData {
  /** The most jobs at a time: 1, and the thread compresses by itself; more, and libuv's threads compress. */
  readonly jobs: number;
}

/** Threads that digest and compress clusters. */
export class CompressThreads extends ServiceThreads<ClusterJob, ClusterResult> {
  constructor({ threads, path, oldGenerationMb }: CompressThreadsOptions = {}) {
    const processors = Math.min(availableParallelism(), MOST_THREADS);
    const most = threads ?? (processors > UV_THREADS ? processors : 1);
    super({
      script: path ?? "#compress-worker",
      most,
      workerData: { jobs: most > 1 ? 1 : UV_THREADS } satisfies CompressThreadData,
      oldGenerationMb,
      code: "E_CLUSTER_WORKER",
      lost: "a thread that digests and compresses clusters ended",
      failed: "clusters could not be digested or compressed",
      closed: "the threads that digest and compress clusters were closed",
    });
  }

  /**
   * Takes over the job's buffer, which can't be used before the result brings it back.
   * @throws {BackupError} the job failed, a thread ended, or `close` was called
   */
  async run(job: ClusterJob): Promise<ClusterResult> {
    const result = await this.put(job, [job.buffer]);
    // A Buffer arrives as a plain Uint8Array.
    return { ...result, digests: Buffer.from(result.digests.buffer) };
  }
}
