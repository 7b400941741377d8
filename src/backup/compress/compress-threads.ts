import { availableParallelism } from "node:os";
import { ServiceThreads } from "../threads/service-threads.js";
import type { ClusterJob, ClusterResult } from "./cluster-job.js";

interface CompressThreadsOptions {
  /**
   * Number of threads. The default is one thread on up to four processors: it computes digests, and libuv's
   * threads compress up to four jobs at the same time. A second thread was measured to gain nothing on two
   * processors, and takes 25 MiB. On more processors the default is one thread for each, up to 16, and each
   * thread compresses by itself.
   */
  readonly threads?: number | undefined;
  /** Path of the threads' script; default: the package's own. */
  readonly path?: string | undefined;
  /** The limit of a thread's JavaScript heap in MiB, without buffers; default: the pool's. */
  readonly oldGenerationMb?: number | undefined;
}

/** libuv's default number of threads for the whole process. */
const UV_THREADS = 4;
const MOST_THREADS = 16;

/** The `workerData` of a thread. */
export interface CompressThreadData {
  /** The most jobs at a time. With 1 the thread compresses by itself, with more libuv's threads compress. */
  readonly jobs: number;
}

/** Threads that look for zeroes in clusters, compute digests and compress. */
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
   * Does a job on a thread. The job's buffer is moved to the thread, and the result brings it back.
   * @throws {BackupError} `E_CLUSTER_WORKER`: the job failed, a thread ended, or `close` was called
   */
  async run(job: ClusterJob): Promise<ClusterResult> {
    const result = await this.put(job, [job.buffer]);
    // Between threads, a Buffer becomes a plain Uint8Array.
    return { ...result, digests: Buffer.from(result.digests.buffer) };
  }
}
