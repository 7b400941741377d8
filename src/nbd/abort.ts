/** AbortSignals, shared by many requests at once. */

import { ConnectionError } from "./errors.js";

const watchers = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Calls `callback` when the signal fires; not if it has fired already. However many requests share a signal, it has
 * one listener: adding and removing one for each costs time, and beyond ten Node warns of a leak.
 * @returns undoes it
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  const known = watchers.get(signal);
  const callbacks = known ?? new Set();
  if (known === undefined) {
    watchers.set(signal, callbacks);
    signal.addEventListener("abort", () => callAll(callbacks), { once: true });
  }
  callbacks.add(callback);
  return () => callbacks.delete(callback);
}

function callAll(callbacks: Set<() => void>): void {
  const all = [...callbacks];
  callbacks.clear();
  for (const callback of all) callback();
}

/** The error for a caller whose signal has fired. */
export function aborted(signal: AbortSignal): ConnectionError {
  return new ConnectionError("NBD_ABORTED", "aborted by the caller", { cause: signal.reason });
}

/** `promise`, or earlier a rejection when the signal fires. */
export async function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  if (signal.aborted) throw aborted(signal);
  return new Promise((resolve, reject) => {
    const forget = onAbort(signal, () => reject(aborted(signal)));
    promise.then(resolve, reject).finally(forget);
  });
}
