import { workerData } from "node:worker_threads";
import { answerQuestions } from "../threads/thread-side.js";
import { type ClusterJob, ClusterJobs, type ClusterResult } from "./cluster-job.js";
import type { CompressThreadData } from "./compress-threads.js";

/** The thread of `CompressThreads`: results go out as they are ready. */

const { ownThread } = workerData as CompressThreadData;
/** As many jobs at once as libuv has threads, where those do the compressing. */
const BENCHES = ownThread ? 1 : 4;

interface Bench {
  readonly work: ClusterJobs;
  last: Promise<unknown>;
}

const benches = Array.from(
  { length: BENCHES },
  (): Bench => ({
    work: new ClusterJobs({ ownThread }),
    last: Promise.resolve(),
  }),
);
let jobs = 0;

async function doJob({ work }: Bench, job: ClusterJob): Promise<ClusterResult> {
  try {
    return await work.run(job);
  } catch (failure) {
    // Whatever the failed job was compressing must not end up in the next one.
    work.close();
    throw failure;
  }
}

answerQuestions<ClusterJob, ClusterResult>({
  answer: (job) => {
    const bench = benches[jobs++ % BENCHES] as Bench;
    const done = bench.last.then(() => doJob(bench, job));
    bench.last = done.catch(() => undefined);
    return done;
  },
  transfer: ({ buffer, sizes, digests }) => [buffer, sizes.buffer, digests.buffer],
});
