/** Helpers for AbortSignals that many requests share. */

import { ConnectionError } from "./errors.js";

interface Watch {
  readonly callbacks: Set<() => void>;
  readonly listener: () => void;
}

const watches = new WeakMap<AbortSignal, Watch>();

/**
 * Calls `callback` when the signal fires, but not if it has already fired. All requests that share a signal
 * use one listener: adding and removing one for each costs time, and Node warns of a leak beyond ten. The
 * listener is removed with the last request, since Node keeps a signal alive while it has listeners.
 * @returns a function that cancels this
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

/** Settles as `promise` does, or rejects when the signal fires first. */
export async function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  if (signal.aborted) throw aborted(signal);
  return new Promise((resolve, reject) => {
    const forget = onAbort(signal, () => reject(aborted(signal)));
    promise.then(resolve, reject).finally(forget);
  });
}

const sources = new WeakMap<AbortSignal, readonly AbortSignal[]>();

/**
 * `AbortSignal.any`, but none of the signals is collected before the one that is returned. Node 20 forgets a
 * time-out (`AbortSignal.timeout`) that only such a signal listens to: it never fires after the next garbage
 * collection.
 * @param signals undefined ones are left out; without any, it never fires
 */
export function anySignal(...signals: readonly (AbortSignal | undefined)[]): AbortSignal {
  const all = signals.filter((signal) => signal !== undefined);
  const any = AbortSignal.any(all);
  sources.set(any, all);
  return any;
}
