import { setImmediate as turn } from "node:timers/promises";

/** A lock is renewed every few seconds, and whoever presses Ctrl-C waits for it. */
const LONGEST_MS = 20;

/**
 * For work that waits for its files on the main thread, since a trip through libuv's threads costs as much as copying a few
 * clusters: lets timers and signals have their turn now and then.
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
