/** The script of the threads that compress-threads.ts starts. */

import { workerData } from "node:worker_threads";
import { answerQuestions } from "../threads/thread-side.js";
import { type ClusterJob, ClusterJobs, type ClusterResult } from "./cluster-job.js";
import type { CompressThreadData } from "./compress-threads.js";

const { jobs } = workerData as CompressThreadData;
/** One for each job that can run at the same time; a running job has taken its own out. */
const idle = Array.from({ length: jobs }, () => new ClusterJobs({ ownThread: jobs === 1 }));

async function answer(job: ClusterJob): Promise<ClusterResult> {
  const worker = idle.pop() as ClusterJobs;
  try {
    return await worker.run(job);
  } catch (failure) {
    // Otherwise, output of the failed compression could end up in the stream of the next job.
    worker.close();
    throw failure;
  } finally {
    idle.push(worker);
  }
}

answerQuestions<ClusterJob, ClusterResult>(
  { answer, transfer: ({ buffer, sizes, digests }) => [buffer, sizes.buffer, digests.buffer] },
  { atOnce: jobs },
);
