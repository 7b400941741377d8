import type * as threads from "node:worker_threads";

/** Every thread that was started. */
export const workers: threads.Worker[] = [];
/** What was sent to them. */
export const sent: unknown[] = [];
/** Whether threads die on their first request. */
export const lethal = { questions: false };

/** Node's module for `vi.mock`, with threads that are recorded here, and can be made to die. */
export function recordedWorkers(real: typeof threads): typeof threads {
  class Worker extends real.Worker {
    constructor(...args: ConstructorParameters<typeof real.Worker>) {
      super(...args);
      workers.push(this);
    }
    override postMessage(...args: Parameters<threads.Worker["postMessage"]>): void {
      sent.push(args[0]);
      if (lethal.questions) void this.terminate();
      else super.postMessage(...args);
    }
  }
  return { ...real, Worker };
}
