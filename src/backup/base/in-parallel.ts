import { setMaxListeners } from "node:events";
import pLimit from "p-limit";
import { anySignal } from "../../nbd/index.js";

/**
 * Calls `work` for every item, at most `atOnce` at a time. The first failure aborts the signal that the other
 * calls received. It is thrown after all calls have ended, so nothing keeps running after the rejection.
 * @returns the results in the order of the items
 * @throws the first failure, or the reason of `signal`
 */
export async function allOrNone<T, R>(
  items: readonly T[],
  atOnce: number,
  signal: AbortSignal | undefined,
  work: (item: T, signal: AbortSignal) => Promise<R>,
): Promise<R[]> {
  const stop = new AbortController();
  const either = anySignal(signal, stop.signal);
  // Every request of every item may add a listener, so many listeners are not a leak.
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
 * Waits until all promises are settled. If several reject, the first one in the order of the arguments
 * decides the error, as if the work had been done one after the other.
 */
export async function together<T extends readonly unknown[]>(
  ...promises: { readonly [K in keyof T]: Promise<T[K]> }
): Promise<T> {
  const failed = (await Promise.allSettled(promises)).find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return (await Promise.all(promises)) as unknown as T;
}

interface Closable {
  close(): Promise<void>;
}

/**
 * Opens something for every item, at most `atOnce` at a time. If one can't be opened, the others are closed
 * again.
 * @returns in the order of the items
 * @throws the first failure in that order
 */
export async function openAll<T, R extends Closable>(
  items: readonly T[],
  atOnce: number,
  open: (item: T) => Promise<R>,
): Promise<R[]> {
  const outcomes = await untilOneFails(items, atOnce, open);
  const opened = outcomes.flatMap((each) => (each.status === "fulfilled" && each.value) || []);
  const failed = outcomes.find((each) => each.status === "rejected");
  if (failed === undefined) return opened;
  await closeAll(...opened).catch(() => undefined);
  throw failed.reason;
}

/**
 * Calls `look` for every item, at most `atOnce` at a time, and for no more after a failure. Unlike
 * {@link allOrNone} it fails as if all had been looked at one after the other: where there are several
 * failures, of the same one each time.
 * @throws the first failure in the order of the items
 */
export async function lookAtAll<T>(
  items: readonly T[],
  atOnce: number,
  look: (item: T) => Promise<void>,
): Promise<void> {
  const outcomes = await untilOneFails(items, atOnce, look);
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}

/** Those before one that fails have begun before it, so the first failure in order is always the same. */
async function untilOneFails<T, R>(
  items: readonly T[],
  atOnce: number,
  work: (item: T) => Promise<R>,
): Promise<PromiseSettledResult<R | undefined>[]> {
  const limit = pLimit(atOnce);
  let hasFailed = false;
  const all = items.map((item) =>
    limit(async () => {
      if (hasFailed) return undefined;
      try {
        return await work(item);
      } catch (error) {
        hasFailed = true;
        throw error;
      }
    }),
  );
  return await Promise.allSettled(all);
}

/**
 * Closes everything, one after the other, also if something can't be closed.
 * @throws the first failure
 */
export async function closeAll(...open: readonly (Closable | undefined)[]): Promise<void> {
  let failure: { readonly reason: unknown } | undefined;
  for (const each of open) {
    try {
      await each?.close();
    } catch (reason) {
      failure ??= { reason };
    }
  }
  if (failure !== undefined) throw failure.reason;
}
