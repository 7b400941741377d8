/**
 * Caches clusters that were read and compared with their digests. A booting guest reads a few sectors at a
 * time, but the digest covers the whole cluster. Concurrent requests for a cluster share one read.
 */
export class ClusterCache {
  readonly #most: number;
  /** Least recently used first. */
  readonly #clusters = new Map<string, Promise<Buffer>>();

  /** @param most clusters that are kept, including those that are still being read */
  constructor(most: number) {
    this.#most = most;
  }

  /**
   * The bytes under `key`, which callers must not change. Calls `read` if they are not cached. A failure of
   * `read` is not cached.
   */
  async get(key: string, read: () => Promise<Buffer>): Promise<Buffer> {
    const known = this.#clusters.get(key);
    const cluster = known ?? read();
    this.#clusters.delete(key);
    this.#clusters.set(key, cluster);
    const [oldest] = this.#clusters.keys();
    if (this.#clusters.size > this.#most && oldest !== undefined) this.#clusters.delete(oldest);
    try {
      return await cluster;
    } catch (error) {
      if (this.#clusters.get(key) === cluster) this.#clusters.delete(key);
      throw error;
    }
  }
}
