import { DamageError } from "../base/errors.js";

/** After so long, whatever nobody has asked for is dropped. */
const KEPT_MS = 5 * 60_000;
/** Requests at once: a store answers many of them as quickly as one. */
const AT_ONCE = 16;

/**
 * Clusters that are read before anybody asks for them. Each is given out once, and whoever asks for one that
 * is on its way waits for it. What is never asked for is dropped after a while.
 */
export class FetchedAhead {
  readonly #clusters = new Map<string, Promise<Buffer | undefined>>();
  /** Asked for before it was fetched: that is not fetched any more. */
  readonly #missed = new Set<string>();
  /** Bytes that may still be fetched. */
  #left: number;
  #isFetching = true;
  #timer: NodeJS.Timeout | undefined;

  /** @param most bytes that are fetched in all, give or take a read: never more are in memory */
  constructor(most: number) {
    this.#left = most;
  }

  /** Nothing is there, and nothing will be. */
  get isOver(): boolean {
    return !this.#isFetching && this.#clusters.size === 0;
  }

  /**
   * Runs the fetches, a few at a time, until all are done, there is no more room, or the store fails. Never
   * rejects. When the signal fires, then or later, nothing is kept.
   */
  async run(fetches: Iterator<() => Promise<void>>, signal: AbortSignal): Promise<void> {
    signal.addEventListener("abort", () => this.clear(), { once: true });
    const lane = async (): Promise<void> => {
      while (this.#isFetching && this.#left > 0 && !signal.aborted) {
        const next = fetches.next();
        if (next.done) return;
        await next.value().catch((error: unknown) => {
          // Whoever asks for a damaged cluster is told.
          if (!(error instanceof DamageError)) this.#stop();
        });
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, lane));
    this.#stop();
    if (!signal.aborted) this.#timer = setTimeout(() => this.clear(), KEPT_MS).unref();
  }

  /** Whether it is still worth fetching. */
  isWanted(key: string): boolean {
    return !this.#clusters.has(key) && !this.#missed.has(key);
  }

  /**
   * Reads some clusters together. Rejects as `read` does, and whoever waits for a cluster then reads it
   * anew.
   * @param clusters and how many bytes each has
   */
  async fetch(
    clusters: readonly { readonly key: string; readonly length: number }[],
    read: (target: Buffer) => Promise<void>,
  ): Promise<void> {
    const target = Buffer.allocUnsafe(clusters.reduce((sum, { length }) => sum + length, 0));
    this.#left -= target.length;
    const reading = read(target);
    let at = 0;
    for (const { key, length } of clusters) {
      const bytes = target.subarray(at, at + length);
      this.#clusters.set(
        key,
        reading.then(
          () => bytes,
          () => undefined,
        ),
      );
      at += length;
    }
    try {
      await reading;
    } catch (error) {
      for (const { key } of clusters) this.#clusters.delete(key);
      throw error;
    }
  }

  /** The cluster, if it was fetched, and for the first who asks. */
  take(key: string): Promise<Buffer | undefined> | undefined {
    const found = this.#clusters.get(key);
    if (found) this.#clusters.delete(key);
    else if (this.#isFetching) this.#missed.add(key);
    return found;
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#stop();
    this.#clusters.clear();
  }

  #stop(): void {
    this.#isFetching = false;
    this.#missed.clear();
  }
}
