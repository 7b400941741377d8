/**
 * Counters are kept in pages, so that memory grows with the clusters in use, not with the length of a sparse
 * file.
 */
const PAGE_CLUSTERS = 64 * 1024;

/** In each counter: the cluster is a table, or holds data of one guest cluster as it is. */
const WHOLE = 0x8000;
/** In addition: an entry says that nothing else uses the cluster. */
const COPIED = 0x4000;
const COUNT = 0x7fff;
const WHOLE_COUNT = 0x3fff;

/** Counts the references to each cluster of a file, in 16 bits a cluster; few clusters have more than fit. */
export class ClusterUses {
  readonly #pages = new Map<number, Uint16Array>();
  /** By cluster: the uses that its counter has no room for. */
  readonly #beyond = new Map<number, number>();

  /**
   * Counts a use of the cluster as a whole.
   * @returns false if it has another use already
   */
  claim(cluster: number, copied: boolean): boolean {
    return this.#add(cluster, copied ? WHOLE | COPIED : WHOLE) === 0;
  }

  /**
   * Counts a use that allows others like it: several compressed streams can share a cluster.
   * @returns false if the cluster is used as a whole
   */
  share(cluster: number): boolean {
    return (this.#add(cluster, 0) & WHOLE) === 0;
  }

  of(cluster: number): number {
    return countIn(this.#counter(cluster)) + (this.#beyond.get(cluster) ?? 0);
  }

  /** Whether an entry says that nothing else uses the cluster. */
  isCopied(cluster: number): boolean {
    return (this.#counter(cluster) & (WHOLE | COPIED)) === (WHOLE | COPIED);
  }

  /** The clusters in use, in no particular order. */
  *used(): Generator<number> {
    for (const [number, page] of this.#pages) {
      for (let i = 0; i < PAGE_CLUSTERS; i += 1) {
        if (page[i] !== 0) yield number * PAGE_CLUSTERS + i;
      }
    }
  }

  /** The clusters in use, in file order. Neighbours that are used equally often become one range. */
  *inOrder(): Generator<{ readonly first: number; readonly end: number; readonly refcount: number }> {
    let last: { first: number; end: number; refcount: number } | undefined;
    for (const number of [...this.#pages.keys()].sort((a, b) => a - b)) {
      for (let i = 0; i < PAGE_CLUSTERS; i += 1) {
        const first = number * PAGE_CLUSTERS + i;
        const refcount = this.of(first);
        if (refcount === 0) continue;
        if (last && last.end === first && last.refcount === refcount) {
          last.end += 1;
          continue;
        }
        if (last) yield last;
        last = { first, end: first + 1, refcount };
      }
    }
    if (last) yield last;
  }

  #counter(cluster: number): number {
    return this.#pages.get(Math.floor(cluster / PAGE_CLUSTERS))?.[cluster % PAGE_CLUSTERS] ?? 0;
  }

  /** @returns the counter as it was */
  #add(cluster: number, mark: number): number {
    const number = Math.floor(cluster / PAGE_CLUSTERS);
    let page = this.#pages.get(number);
    if (!page) {
      page = new Uint16Array(PAGE_CLUSTERS);
      this.#pages.set(number, page);
    }
    const before = page[cluster % PAGE_CLUSTERS] ?? 0;
    const marks = (before & WHOLE) !== 0 ? (before & (WHOLE | COPIED)) | mark : mark;
    const most = marks === 0 ? COUNT : WHOLE_COUNT;
    const count = countIn(before) + (this.#beyond.get(cluster) ?? 0) + 1;
    page[cluster % PAGE_CLUSTERS] = marks | Math.min(count, most);
    if (count > most) this.#beyond.set(cluster, count - most);
    return before;
  }
}

function countIn(counter: number): number {
  return counter & ((counter & WHOLE) !== 0 ? WHOLE_COUNT : COUNT);
}
