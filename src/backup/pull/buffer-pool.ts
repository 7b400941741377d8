/**
 * A bounded number of buffers of one size, made as they are needed and used again. They are granted in the order in
 * which they were asked for, so whoever asks in the order of a plan, and gives back in that order too, gets each of
 * them in the end: the first that isn't done has its buffer already, or is the next to get one.
 */
export class BufferPool {
  readonly #bufferBytes: number;
  readonly #free: ArrayBuffer[] = [];
  readonly #waiting: { grant(buffer: ArrayBuffer): void; refuse(reason: unknown): void }[] = [];
  /** How many more may be made. */
  #unmade: number;
  #closed: { readonly reason: unknown } | undefined;

  /** @param bytes of one buffer */
  constructor(bytes: number, count: number) {
    this.#bufferBytes = bytes;
    this.#unmade = count;
  }

  /**
   * Waits for a buffer, with whatever its last user left in it; it is the caller's until `give`.
   * @throws the signal's reason, or that of `close`
   */
  take(signal: AbortSignal): Promise<ArrayBuffer> {
    if (this.#closed) return Promise.reject(this.#closed.reason);
    if (signal.aborted) return Promise.reject(signal.reason);
    const buffer = this.#free.pop() ?? this.#make();
    if (buffer) return Promise.resolve(buffer);
    return new Promise((resolve, reject) => {
      const waiting = {
        grant: (granted: ArrayBuffer): void => {
          signal.removeEventListener("abort", giveUp);
          resolve(granted);
        },
        refuse: (reason: unknown): void => {
          signal.removeEventListener("abort", giveUp);
          reject(reason);
        },
      };
      const giveUp = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(waiting), 1);
        reject(signal.reason);
      };
      signal.addEventListener("abort", giveUp, { once: true });
      this.#waiting.push(waiting);
    });
  }

  /** The buffer is the pool's again. */
  give(buffer: ArrayBuffer): void {
    const next = this.#waiting.shift();
    if (next) next.grant(buffer);
    else this.#free.push(buffer);
  }

  /** Nobody gets a buffer any more, nor waits for one. */
  close(reason: unknown): void {
    this.#closed ??= { reason };
    for (const { refuse } of this.#waiting.splice(0)) refuse(this.#closed.reason);
  }

  #make(): ArrayBuffer | undefined {
    if (this.#unmade === 0) return undefined;
    this.#unmade -= 1;
    return new ArrayBuffer(this.#bufferBytes);
  }
}
