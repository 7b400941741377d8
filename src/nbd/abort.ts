/** AbortSignals, shared by many requests at once. */

import { ConnectionError } from "./errors.js";

interface Watch {
  readonly callbacks: Set<() => void>;
  readonly listener: () => void;
}

const watches = new WeakMap<AbortSignal, Watch>();

/**
 * Calls `callback` when the signal fires; not if it has fired already. However many requests share a signal, it has
 * one listener: adding and removing one for each costs time, and beyond ten Node warns of a leak. It goes with the
 * last of them, since Node keeps a signal that is listened to.
 * @returns undoes it
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  const watch = watches.get(signal) ?? begin(signal);
  const { callbacks, listener } = watch;
  callbacks.add(callback);
  return () => {
    if (!callbacks.delete(callback) || callbacks.size > 0) return;
    signal.removeEventListener("abort", listener);
    watches.delete(signal);
  };
}

function begin(signal: AbortSignal): Watch {
  const callbacks = new Set<() => void>();
  const watch = {
    callbacks,
    listener: () => {
      watches.delete(signal);
      callAll(callbacks);
    },
  };
  watches.set(signal, watch);
  signal.addEventListener("abort", watch.listener, { once: true });
  return watch;
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
