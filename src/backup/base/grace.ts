/**
 * Runs `work` with a signal that fires so many milliseconds after `signal` does, for the same reason: what has
 * to be done although somebody has given a signal gets some time, and no more.
 * @throws what `work` throws
 */
export async function withGrace<T>(
  signal: AbortSignal | undefined,
  graceMs: number,
  work: (late: AbortSignal) => Promise<T>,
): Promise<T> {
  const late = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const begin = (): void => {
    timer = setTimeout(() => late.abort(signal?.reason), graceMs);
  };
  if (signal?.aborted) begin();
  else signal?.addEventListener("abort", begin, { once: true });
  try {
    return await work(late.signal);
  } finally {
    signal?.removeEventListener("abort", begin);
    clearTimeout(timer);
  }
}
