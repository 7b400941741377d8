/** A store that is opened: it may be starting, and it may have been away for a minute just now. */

import { tellWaiting } from "../base/waiting.js";
import { reasonOf, statusOf } from "./errors.js";

/** When it is told that a store is waited for. */
const TOLD_AFTER_MS = 2_000;
/**
 * How long a store is waited for that this process has waited for in vain: the domains of a night that come
 * after that one fail soon, or have it as soon as it is back.
 */
const AGAIN_MS = 5_000;

/** A store that was away so long ago may have come back, and be starting again. */
const FORGOTTEN_MS = 10 * 60_000;

/** Stores that this process has waited for in vain, and that have not answered since; and when that was. */
const away = new Map<string, number>();

export function waitedInVain(store: string): void {
  away.set(store, performance.now());
}

export function hasAnswered(store: string): void {
  away.delete(store);
}

interface OpeningOptions {
  /** How long the store is waited for, in milliseconds. */
  readonly patienceMs: number;
  /** The error for a store that is given up. @param cause the last failure */
  readonly failure: (cause: unknown) => Error;
}

/** The first request to a store, with all its tries, until it has succeeded or is given up. */
export class Opening implements Disposable {
  readonly #late = new AbortController();
  readonly #timers: readonly NodeJS.Timeout[];
  #failure: unknown;

  constructor(store: string, { patienceMs, failure }: OpeningOptions) {
    const since = performance.now() - (away.get(store) ?? Number.NEGATIVE_INFINITY);
    const mostMs = since < FORGOTTEN_MS ? Math.min(AGAIN_MS, patienceMs) : patienceMs;
    const tell = (): void => {
      const because = becauseOf(this.#failure);
      if (because !== undefined) tellWaiting({ store, because, seconds: Math.round(mostMs / 1000) });
    };
    const giveUp = (): void => {
      const silence = Object.assign(new Error(`it was waited for in vain before`), { name: "TimeoutError" });
      this.#late.abort(failure(this.#failure ?? silence));
    };
    this.#timers = [
      setTimeout(tell, TOLD_AFTER_MS),
      ...(mostMs < patienceMs ? [setTimeout(giveUp, mostMs)] : []),
    ];
  }

  /** Aborted when it is given up sooner than others are. */
  get late(): AbortSignal {
    return this.#late.signal;
  }

  /** One try. */
  async watch<T>(trying: Promise<T>): Promise<T> {
    try {
      return await trying;
    } catch (error) {
      this.#failure = error;
      throw error;
    }
  }

  [Symbol.dispose](): void {
    for (const timer of this.#timers) clearTimeout(timer);
  }
}

/** Undefined: it is not waited for. @param failure of the last try; undefined: nothing was answered yet */
function becauseOf(failure: unknown): string | undefined {
  if (failure === undefined) return "has not answered yet";
  const reason = reasonOf(failure);
  if (reason === "ENOTFOUND") return undefined;
  if (statusOf(failure) !== undefined) return `answers ${reason}`;
  return `does not answer (${reason})`;
}
