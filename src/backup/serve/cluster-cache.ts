/**
 * Clusters that were read and compared with their digests a moment ago: a guest that boots reads a few sectors at a
 * time, and the digest is of the whole cluster. What is being read is shared by all who want it.
 */
export class ClusterCache {
  readonly #most: number;
  /** Least recently used first. */
  readonly #clusters = new Map<string, Promise<Buffer>>();

  /** @param most clusters that are kept, those still being read included */
  constructor(most: number) {
    this.#most = most;
  }

  /** The bytes under `key`, which nobody may change; `read` is called where they are not here. A failure isn't kept. */
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
