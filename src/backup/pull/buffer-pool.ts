/**
 * A bounded number of buffers of one size, created when needed and reused. They are granted in the order of
 * the calls of `take`. If segments take buffers in the order of a plan and give them back in that order,
 * there is no deadlock: the first unfinished segment has its buffer, or is the next to get one.
 */
export class BufferPool {
  readonly #bufferBytes: number;
  readonly #free: ArrayBuffer[] = [];
  readonly #waiting: { grant(buffer: ArrayBuffer): void; refuse(reason: unknown): void }[] = [];
  /** How many more buffers may be created. */
  #unmade: number;
  #closed: { readonly reason: unknown } | undefined;

  /**
   * @param bytes size of one buffer
   * @param count most buffers that exist at a time
   */
  constructor(bytes: number, count: number) {
    this.#bufferBytes = bytes;
    this.#unmade = count;
  }

  /**
   * Waits for a buffer, which still holds the bytes of its last user. It belongs to the caller until `give`.
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

  /** Returns a buffer to the pool. */
  give(buffer: ArrayBuffer): void {
    const next = this.#waiting.shift();
    if (next) next.grant(buffer);
    else this.#free.push(buffer);
  }

  /** Rejects all calls of `take`, those that wait and later ones. */
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
