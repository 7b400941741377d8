import { aborted, onAbort } from "./abort.js";
import type { Exchange, Settlement } from "./exchange.js";

/**
 * The settlement of a request that is abandoned when the signal fires.
 * @param abandoned is called after that; not if the request had settled before
 */
export function heeding<T>(
  signal: AbortSignal,
  exchange: Exchange<T>,
  { resolve, reject }: Settlement<T>,
  abandoned: () => void,
): Settlement<T> {
  const forget = onAbort(signal, () => {
    exchange.abandon(aborted(signal));
    abandoned();
  });
  return {
    resolve: (value) => {
      forget();
      resolve(value);
    },
    reject: (error, of) => {
      forget();
      reject(error, of);
    },
  };
}
