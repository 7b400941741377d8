import type { Provable } from "./provable.js";
import { Reservoir } from "./reservoir.js";
import type { SeededRandom } from "./seeded-random.js";

/** One cluster of those that can be compared. */
interface ChosenCluster {
  readonly run: Provable;
  /** Index of the cluster in the run. */
  readonly index: number;
}

/** A part of the disk of which one cluster is chosen. Bytes of the guest; `to` is not included. */
interface Stratum {
  readonly from: number;
  readonly to: number;
  readonly one: Reservoir<ChosenCluster>;
}

/** Bytes of the first stratum, at the disk's start or end. Each further one goes twice as far. */
const FIRST_STRATUM = 64 * 1024;

/**
 * Chooses clusters that are compared in the place of all. Where another disk stands at this one's place, or
 * an older state of it, some clusters tell it better than others. So each kind has its share of the choice:
 *
 *     an eighth    clusters that the chain has as data, and that read as zeroes by the server's map: an
 *                  image that was made anew, or was shrunk and has grown again
 *     a quarter    data near the start, one of each doubling of the distance: partition tables, superblocks
 *     an eighth    data near the end likewise: second partition tables, and the end of a shrunk disk
 *     an eighth    data of as many equal parts of the disk
 *     an eighth    zeroes of the chain where the server's map promises no zeroes
 *     the rest     data anywhere
 *
 * A share that finds too little goes to the rest. Zeroes that the server promises need no choice: the map
 * compares all of them.
 */
export class ClusterChoice {
  readonly #amount: number;
  readonly #random: SeededRandom;
  readonly #lost: Reservoir<ChosenCluster>;
  readonly #appeared: Reservoir<ChosenCluster>;
  readonly #data: Reservoir<ChosenCluster>;
  readonly #strata: readonly (readonly Stratum[])[];
  /** Of each row of strata the first one that doesn't end before the last run. */
  readonly #reached: number[];

  /**
   * @param amount most clusters, at least 1
   * @param size of the disk in bytes
   */
  constructor(amount: number, size: number, random: SeededRandom) {
    this.#amount = amount;
    this.#random = random;
    this.#lost = new Reservoir(Math.ceil(amount / 8), random);
    this.#appeared = new Reservoir(amount, random);
    this.#data = new Reservoir(amount, random);
    const rows = [
      doublings(Math.floor(amount / 4), size),
      doublings(Math.floor(amount / 8), size)
        .map(([from, to]) => [size - to, size - from] as const)
        .reverse(),
      equalParts(Math.floor(amount / 8), size),
    ];
    this.#strata = rows.map((row) =>
      row.map(([from, to]) => ({ from, to, one: new Reservoir<ChosenCluster>(1, random) })),
    );
    this.#reached = rows.map(() => 0);
  }

  /** Offers clusters, in guest order. */
  offer(run: Provable): void {
    const at = (index: number): ChosenCluster => ({ run, index });
    if (run.kind === "zero") {
      if (!run.readsAsZeroes) this.#appeared.offer(run.count, at);
      return;
    }
    if (run.readsAsZeroes) this.#lost.offer(run.count, at);
    this.#data.offer(run.count, at);
    const end = run.offset + run.length;
    for (const [row, strata] of this.#strata.entries()) {
      let i = this.#reached[row] ?? 0;
      while ((strata[i]?.to ?? Number.POSITIVE_INFINITY) <= run.offset) i += 1;
      this.#reached[row] = i;
      for (let stratum = strata[i]; stratum !== undefined && stratum.from < end; stratum = strata[i]) {
        const first = Math.max(0, Math.ceil((stratum.from - run.offset) / run.clusterSize));
        const stop = Math.min(run.count, Math.ceil((stratum.to - run.offset) / run.clusterSize));
        if (stop > first) stratum.one.offer(stop - first, (index) => at(first + index));
        i += 1;
      }
    }
  }

  /** The choice, in guest order, each cluster once. To be called once, after the last offer. */
  chosen(): ChosenCluster[] {
    const byOffset = new Map<number, ChosenCluster>();
    const take = (clusters: readonly ChosenCluster[], most: number): void => {
      for (const cluster of clusters) {
        if (byOffset.size >= Math.min(most, this.#amount)) return;
        byOffset.set(offsetOf(cluster), cluster);
      }
    };
    take(this.#lost.kept, this.#amount);
    for (const { one } of this.#strata.flat()) take(one.kept, this.#amount);
    const appeared = this.#shuffled(this.#appeared.kept);
    take(appeared, byOffset.size + Math.floor(this.#amount / 8));
    take(this.#shuffled(this.#data.kept), this.#amount);
    take(appeared, this.#amount);
    return [...byOffset.values()].sort((a, b) => offsetOf(a) - offsetOf(b));
  }

  #shuffled<T>(items: readonly T[]): T[] {
    const shuffled = [...items];
    for (let i = shuffled.length - 1; i > 0; i -= 1) {
      const j = this.#random.below(i + 1);
      [shuffled[i], shuffled[j]] = [shuffled[j] as T, shuffled[i] as T];
    }
    return shuffled;
  }
}

/** Guest offset of a cluster, in bytes. */
export function offsetOf({ run, index }: ChosenCluster): number {
  return run.offset + index * run.clusterSize;
}

/** Up to `most` stretches from byte 0 on, each but the second twice as long as the one before it. */
function doublings(most: number, size: number): (readonly [from: number, to: number])[] {
  const strata: (readonly [number, number])[] = [];
  for (let from = 0; strata.length < most && from < size; ) {
    const to = Math.min(size, Math.max(FIRST_STRATUM, 2 * from));
    strata.push([from, to]);
    from = to;
  }
  return strata;
}

function equalParts(count: number, size: number): (readonly [from: number, to: number])[] {
  return Array.from({ length: count }, (_, i) => [
    Math.floor((size * i) / count),
    Math.floor((size * (i + 1)) / count),
  ]);
}
