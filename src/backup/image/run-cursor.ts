/**
 * A stream of runs in guest order that is consumed cluster by cluster. It comes in blocks, of which the next
 * one is only waited for when this one is consumed: a promise for each run would take longer than the run.
 */
export class RunCursor<T extends { readonly cluster: number; readonly count: number }> {
  readonly #blocks: AsyncIterator<readonly T[]>;
  #block: readonly T[] = [];
  /** Index of the next run of the block. */
  #next = 0;
  #run: T | undefined;
  #skipped = 0;
  #isDone = false;

  constructor(blocks: AsyncIterable<readonly T[]>) {
    this.#blocks = blocks[Symbol.asyncIterator]();
  }

  /**
   * Goes on to the run of the next cluster, if that is in memory, or to the end.
   * @returns false if {@link more} has to be awaited first
   */
  advance(): boolean {
    if (this.#run && this.#skipped < this.#run.count) return true;
    if (this.#next >= this.#block.length && !this.#isDone) return false;
    this.#run = this.#block[this.#next++];
    this.#skipped = 0;
    return true;
  }

  /** Reads the next block. */
  async more(): Promise<void> {
    const next = await this.#blocks.next();
    this.#isDone = next.done === true;
    this.#block = next.done === true ? [] : next.value;
    this.#next = 0;
  }

  /** The run of the next cluster; undefined at the end. */
  get run(): T | undefined {
    return this.#run;
  }

  /** Skips all clusters before `cluster`. Returns the run that holds it, or the first one after it. */
  async seek(cluster: number): Promise<T | undefined> {
    for (;;) {
      while (!this.advance()) await this.more();
      const run = this.#run;
      if (run === undefined || run.cluster + run.count > cluster) return run;
      this.skip(this.remaining);
    }
  }

  /** The next cluster. */
  get cluster(): number {
    return (this.#run?.cluster ?? 0) + this.#skipped;
  }

  /** Clusters of the current run from the next one on. */
  get remaining(): number {
    return (this.#run?.count ?? 0) - this.#skipped;
  }

  skip(count: number): void {
    this.#skipped += count;
  }

  /** Ends the stream; the runs that were not consumed are not read. */
  async close(): Promise<void> {
    await this.#blocks.return?.();
  }
}
