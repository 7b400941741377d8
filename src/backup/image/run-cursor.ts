/** A stream of runs in guest order that is consumed cluster by cluster. */
export class RunCursor<T extends { readonly cluster: number; readonly count: number }> {
  readonly #runs: AsyncIterator<T>;
  #current: T | undefined;
  #skipped = 0;

  constructor(runs: AsyncIterable<T>) {
    this.#runs = runs[Symbol.asyncIterator]();
  }

  /** The run of the next cluster; undefined at the end. */
  async current(): Promise<T | undefined> {
    if (this.#current && this.#skipped < this.#current.count) return this.#current;
    const next = await this.#runs.next();
    this.#current = next.done ? undefined : next.value;
    this.#skipped = 0;
    return this.#current;
  }

  /** Skips all clusters before `cluster`. Returns the run that holds it, or the first one after it. */
  async seek(cluster: number): Promise<T | undefined> {
    for (;;) {
      const run = await this.current();
      if (run === undefined || run.cluster + run.count > cluster) return run;
      this.skip(this.remaining);
    }
  }

  /** The next cluster. */
  get cluster(): number {
    return (this.#current?.cluster ?? 0) + this.#skipped;
  }

  /** Clusters of the current run from the next one on. */
  get remaining(): number {
    return (this.#current?.count ?? 0) - this.#skipped;
  }

  skip(count: number): void {
    this.#skipped += count;
  }

  /** Ends the stream; the runs that were not consumed are not read. */
  async close(): Promise<void> {
    await this.#runs.return?.();
  }
}
