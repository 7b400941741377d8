import { setTimeout as sleep } from "node:timers/promises";
import { isPassing } from "./errors.js";

/** The first pause; each further one is twice as long. */
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 10_000;

interface Patience {
  /**
   * Begins no further try so many milliseconds after the first failure, however long that took. It may depend
   * on how the last try failed.
   */
  readonly patienceMs: number | ((error: unknown) => number);
  readonly signal?: AbortSignal | undefined;
}

/**
 * Repeats `request` with growing pauses while it fails in a way that may pass: a network or a store that is
 * down for a moment, or that asks to be spared.
 * @throws the last failure, or the signal's reason
 */
export async function patiently<T>(request: () => Promise<T>, { patienceMs, signal }: Patience): Promise<T> {
  let failedAt: number | undefined;
  for (let longest = FIRST_PAUSE_MS; ; longest = Math.min(2 * longest, LONGEST_PAUSE_MS)) {
    signal?.throwIfAborted();
    try {
      return await request();
    } catch (error) {
      signal?.throwIfAborted();
      // Many who were refused together must not come back together.
      const pause = longest * (0.5 + Math.random() / 2);
      failedAt ??= performance.now();
      const waitedMs = performance.now() - failedAt;
      const most = typeof patienceMs === "number" ? patienceMs : patienceMs(error);
      if (!isPassing(error) || waitedMs + pause > most) throw error;
      await sleep(pause, undefined, signal ? { signal } : {}).catch(() => signal?.throwIfAborted());
    }
  }
}
