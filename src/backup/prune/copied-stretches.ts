/** Which clusters of an image's file are shown by the merged disk: a bit each. */
export class ShownClusters {
  readonly length: number;
  readonly #bits: Uint8Array;

  /** @param length clusters of the file */
  constructor(length: number) {
    this.length = length;
    this.#bits = new Uint8Array(Math.ceil(length / 8));
  }

  add(first: number, end: number): void {
    for (let i = first; i < Math.min(end, this.length); i += 1) {
      this.#bits[i >> 3] = (this.#bits[i >> 3] ?? 0) | (1 << (i & 7));
    }
  }

  has(cluster: number): boolean {
    return ((this.#bits[cluster >> 3] ?? 0) & (1 << (cluster & 7))) !== 0;
  }

  count(first = 0, end = this.length): number {
    let count = 0;
    for (let i = first; i < end; i += 1) if (this.has(i)) count += 1;
    return count;
  }

  /** Stretches of neighbouring clusters that are shown, in order. */
  *stretches(): Generator<{ readonly first: number; readonly end: number }> {
    for (let first = 0; first < this.length; ) {
      if (this.#bits[first >> 3] === 0) first += 8 - (first & 7);
      else if (!this.has(first)) first += 1;
      else {
        let end = first + 1;
        while (end < this.length && this.has(end)) end += 1;
        yield { first, end };
        first = end;
      }
    }
  }
}

/** Clusters of an image's file that the store copies by itself. */
export interface CopiedStretch {
  /** Index of the image. */
  readonly image: number;
  readonly first: number;
  readonly end: number;
}

interface StretchOptions {
  /** Clusters of the shortest stretch that a store copies. */
  readonly least: number;
  /**
   * Clusters of a new image that are written at least, if any are copied: its header's part. The header takes
   * one of them.
   */
  readonly head: number;
  /** How many stretches there may be. */
  readonly most: number;
}

interface CopiedStretches {
  /** Of each image in order. */
  readonly stretches: readonly CopiedStretch[];
  /** Clusters that are shown and in no stretch. */
  readonly others: number;
}

/** Of a stretch, the part that may lie there unused. */
const MOST_UNUSED = 1 / 3;

/**
 * Finds what a store can copy of several images: long stretches of which at least two thirds are shown. What
 * is not shown stays in the copy as unused room, so that little has to travel. The rest is read and written,
 * packed.
 *
 *     shown      |######  ##|   #    |  ######|########|  |  #
 *     copied     |##########|                 |########|
 *     travels                   #       ######               #      (too short to be copied)
 *
 * @param shown what is shown of each image; undefined: nothing of it can be copied
 * @param others clusters that have to travel in any case
 */
export function findStretches(
  shown: readonly (ShownClusters | undefined)[],
  others: number,
  { least, head, most }: StretchOptions,
): CopiedStretches {
  let found = shown.flatMap((clusters, image) => (clusters ? [...longStretches(clusters, image)] : []));
  found = found.filter(({ first, end }) => end - first >= least);
  const byLength = (one: CopiedStretch, other: CopiedStretch): number =>
    other.end - other.first - (one.end - one.first);
  found = found.sort(byLength).slice(0, most);
  const all = shown.reduce((sum, clusters) => sum + (clusters?.count() ?? 0), others);
  const shownIn = ({ image, first, end }: CopiedStretch): number => shown[image]?.count(first, end) ?? 0;
  let travelling = all - found.reduce((sum, stretch) => sum + shownIn(stretch), 0);
  // The part that begins with the header has to be as long as others. The shortest stretches fill it.
  while (travelling < head - 1) {
    const shortest = found.pop();
    if (!shortest) break;
    const cut = cutFront(shortest, shown[shortest.image] as ShownClusters, head - 1 - travelling);
    travelling += shownIn(shortest);
    if (cut.end - cut.first < least) continue;
    travelling -= shownIn(cut);
    found.push(cut);
    found.sort(byLength);
  }
  found.sort((one, other) => one.image - other.image || one.first - other.first);
  return { stretches: found, others: travelling };
}

/** Joins stretches over gaps as long as most of the whole is shown. */
function* longStretches(clusters: ShownClusters, image: number): Generator<CopiedStretch> {
  let last: { first: number; end: number; unused: number } | undefined;
  for (const { first, end } of clusters.stretches()) {
    const unused = last ? last.unused + first - last.end : 0;
    if (last && unused <= (end - last.first) * MOST_UNUSED) last = { first: last.first, end, unused };
    else {
      if (last) yield { image, first: last.first, end: last.end };
      last = { first, end, unused: 0 };
    }
  }
  if (last) yield { image, first: last.first, end: last.end };
}

/** The stretch without the first `count` clusters that are shown, and without what is unused then. */
function cutFront(
  { image, first, end }: CopiedStretch,
  clusters: ShownClusters,
  count: number,
): CopiedStretch {
  let at = first;
  for (let left = count; at < end && (left > 0 || !clusters.has(at)); at += 1) {
    if (clusters.has(at)) left -= 1;
  }
  return { image, first: at, end };
}
