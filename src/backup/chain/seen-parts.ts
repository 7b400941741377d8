/**
 * How much was seen of clusters of which parts are hidden, for a walk in guest order. What the walk has
 * passed is forgotten, so at most one cluster of each layer is held, and those that begin inside it.
 */
export class SeenParts<Run> {
  readonly #parts = new Map<Run, { bytes: number; readonly end: number }>();

  /** Clusters that are held. */
  get size(): number {
    return this.#parts.size;
  }

  /**
   * Adds a stretch that is seen.
   * @param offset where it begins, in bytes of the guest; never less than that of the last one
   * @param end where its cluster ends
   * @returns the bytes of the cluster that were seen so far
   */
  add(run: Run, { offset, length, end }: { offset: number; length: number; end: number }): number {
    for (const [passed, part] of this.#parts) if (part.end <= offset) this.#parts.delete(passed);
    const part = this.#parts.get(run) ?? { bytes: 0, end };
    part.bytes += length;
    this.#parts.set(run, part);
    return part.bytes;
  }
}
