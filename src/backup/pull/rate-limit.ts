import { setTimeout as sleep } from "node:timers/promises";

/** Longest time that unused rate is saved up for: a pause is not followed by a burst. */
const MAX_SAVED_MS = 100;

/** Spreads bytes over time; one limit may be shared by several disks. */
export class RateLimit {
  readonly #bytesPerMs: number;
  /** When all that was taken so far is due, by the monotonic clock. */
  #due = performance.now();

  constructor(bytesPerSecond: number) {
    this.#bytesPerMs = bytesPerSecond / 1000;
  }

  /**
   * Waits for the turn of `bytes`.
   * @throws the signal's reason
   */
  async take(bytes: number, signal: AbortSignal): Promise<void> {
    const now = performance.now();
    const turn = Math.max(this.#due, now - MAX_SAVED_MS);
    this.#due = turn + bytes / this.#bytesPerMs;
    if (turn <= now) return;
    await sleep(turn - now, undefined, { signal }).catch(() => signal.throwIfAborted());
  }
}
