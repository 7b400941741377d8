import { UnsentError } from "./errors.js";

/** Somebody who waits for a slot. */
interface Waiter {
  readonly take: () => void;
  readonly refuse: (reason: unknown) => void;
}

/**
 * How many calls a daemon works on at a time. Each holds a slot until the daemon has answered it, also when
 * nobody waits for that any longer: the daemon counts it as well. Who has to wait gets a slot in turn.
 */
export class CallSlots {
  readonly #most: number;
  readonly #waiting = new Set<Waiter>();
  #taken = 0;

  constructor(most: number) {
    this.#most = most;
  }

  get areTaken(): boolean {
    return this.#taken >= this.#most;
  }

  get isWaitedFor(): boolean {
    return this.#waiting.size > 0;
  }

  /**
   * Takes a slot, at once if one is free.
   * @throws the signal's reason, if it fires first; {@link UnsentError}
   */
  async take(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (!this.areTaken) {
      this.#taken += 1;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const abort = (): void => waiter.refuse(signal.reason);
      const end = (): void => {
        this.#waiting.delete(waiter);
        signal.removeEventListener("abort", abort);
      };
      const waiter: Waiter = {
        take: () => {
          end();
          resolve();
        },
        refuse: (reason) => {
          end();
          reject(reason);
        },
      };
      this.#waiting.add(waiter);
      signal.addEventListener("abort", abort, { once: true });
    });
  }

  /** Gives a slot back, to the one that has waited longest. */
  give(): void {
    const [next] = this.#waiting;
    // The slot stays taken.
    if (next) next.take();
    else this.#taken -= 1;
  }

  /** The connection is lost: nobody gets a slot any more, and nothing of theirs was sent. */
  refuse(reason: unknown): void {
    for (const { refuse } of this.#waiting) refuse(UnsentError.of(reason));
  }
}
