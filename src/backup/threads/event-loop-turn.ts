import { setImmediate as turn } from "node:timers/promises";

/** Short enough for the renewal of locks, every few seconds, and for a user who presses Ctrl-C. */
const LONGEST_MS = 20;

/**
 * Lets timers and signals run now and then, for work that reads and writes files synchronously on the main
 * thread: a trip through libuv's threads costs as much as copying a few clusters.
 */
export class EventLoopTurn {
  #last = performance.now();

  /** @throws the signal's reason */
  async yieldIfDue(signal?: AbortSignal): Promise<void> {
    if (performance.now() - this.#last >= LONGEST_MS) {
      await turn();
      this.#last = performance.now();
    }
    signal?.throwIfAborted();
  }
}
