import { setTimeout as sleep } from "node:timers/promises";

/** Unused rate is saved up for no longer than this, so that no burst follows a pause. */
const MAX_SAVED_MS = 100;

/** Limits a rate of bytes. Several disks may share one limit. */
export class RateLimit {
  /** @internal */
  readonly bytesPerSecond: number;
  /** When the next bytes may be read, in milliseconds of `performance.now()`. */
  #due = performance.now();

  constructor(bytesPerSecond: number) {
    this.bytesPerSecond = bytesPerSecond;
  }

  /**
   * Waits until `bytes` more may be read.
   * @throws the signal's reason
   */
  async take(bytes: number, signal: AbortSignal): Promise<void> {
    const now = performance.now();
    const turn = Math.max(this.#due, now - MAX_SAVED_MS);
    this.#due = turn + (bytes / this.bytesPerSecond) * 1000;
    if (turn <= now) return;
    await sleep(turn - now, undefined, { signal }).catch(() => signal.throwIfAborted());
  }
}
