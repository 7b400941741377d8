import { type MessagePort, parentPort } from "node:worker_threads";
import { type ClusterJob, type ClusterResult, ClusterWork } from "./cluster-work.js";

/** The thread of `ClusterWorkers`: jobs come in as messages, and results go out as they are ready. */

export interface JobMessage {
  readonly id: number;
  readonly job: ClusterJob;
}

/** Memory is handed over in both directions, never copied. */
export type ResultMessage =
  | { readonly id: number; readonly result: ClusterResult }
  | { readonly id: number; readonly failure: unknown };

/** As many jobs at once as libuv has threads, which do the compressing. */
const BENCHES = 4;

async function answer(port: MessagePort, work: ClusterWork, { id, job }: JobMessage): Promise<void> {
  try {
    const result = await work.do(job);
    const message: ResultMessage = { id, result };
    port.postMessage(message, [result.buffer, result.sizes.buffer, result.digests.buffer]);
  } catch (failure) {
    // Whatever the failed job was compressing must not end up in the next one.
    work.close();
    port.postMessage({ id, failure } satisfies ResultMessage);
  }
}

if (parentPort) {
  const port = parentPort;
  const benches = Array.from({ length: BENCHES }, () => ({
    work: new ClusterWork(),
    last: Promise.resolve(),
  }));
  let jobs = 0;
  port.on("message", (message: JobMessage) => {
    const bench = benches[jobs++ % BENCHES] as (typeof benches)[number];
    bench.last = bench.last.then(() => answer(port, bench.work, message));
  });
}
