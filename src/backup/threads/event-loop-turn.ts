import { setImmediate as turn } from "node:timers/promises";

/** Short compared with the renewal of locks (every few seconds) and with a user's patience after Ctrl-C. */
const LONGEST_MS = 20;

/**
 * Lets timers and signal handlers run between pieces of synchronous work. For work that reads and writes
 * files synchronously on the main thread, because a transfer through libuv's threads costs as much as copying
 * a few clusters.
 */
export class EventLoopTurn {
  #last = performance.now();

  /**
   * Gives the event loop one turn if the last turn is more than 20 ms ago.
   * @throws the signal's reason
   */
  async yieldIfDue(signal?: AbortSignal): Promise<void> {
    if (performance.now() - this.#last >= LONGEST_MS) {
      await turn();
      this.#last = performance.now();
    }
    signal?.throwIfAborted();
  }
}
