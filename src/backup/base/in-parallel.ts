import { setMaxListeners } from "node:events";
import pLimit from "p-limit";

/**
 * Does `work` for every item, at most `atOnce` at a time. The first failure aborts the others; it is thrown when all
 * have come to an end, so nothing goes on behind the caller's back.
 */
export async function allOrNone<T, R>(
  items: readonly T[],
  atOnce: number,
  signal: AbortSignal | undefined,
  work: (item: T, signal: AbortSignal) => Promise<R>,
): Promise<R[]> {
  const stop = new AbortController();
  const either = AbortSignal.any(signal ? [signal, stop.signal] : [stop.signal]);
  // Every request of every item may listen: many of them are no leak.
  setMaxListeners(0, either);
  const limit = pLimit(atOnce);
  const all = items.map((item) =>
    limit(async () => {
      try {
        either.throwIfAborted();
        return await work(item, either);
      } catch (error) {
        stop.abort(error);
        throw error;
      }
    }),
  );
  await Promise.allSettled(all);
  either.throwIfAborted();
  return await Promise.all(all);
}

/**
 * Waits for all of several questions that are asked at the same time. Where more than one fails it is the first one's error
 * that counts, as if they had been asked one after the other.
 */
export async function together<T extends readonly unknown[]>(
  ...asked: { readonly [K in keyof T]: Promise<T[K]> }
): Promise<T> {
  const failed = (await Promise.allSettled(asked)).find((answer) => answer.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return (await Promise.all(asked)) as unknown as T;
}
