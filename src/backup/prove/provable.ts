import { isZero } from "../base/zeroes.js";
import type { KnownRun } from "../chain/known-runs.js";
import type { CleanCells } from "../export/clean-cells.js";

/** Bytes of a cluster where the chain has zeroes, which have no clusters of their own. */
export const ZERO_CLUSTER = 64 * 1024;

/** Clusters side by side that can be compared: clean in the export, and known by the chain. */
export interface Provable {
  /** Bytes, of the guest. */
  readonly offset: number;
  /** Ends inside the last cluster where disk, layer or zeroes end there. */
  readonly length: number;
  readonly clusterSize: number;
  readonly count: number;
  /** What the chain has there. */
  readonly kind: "digests" | "zero";
  /** Whether the server says that all of it reads as zeroes. */
  readonly readsAsZeroes: boolean;
  /**
   * The indexes of those clusters that are not as the chain has them.
   * @param first index of the first cluster
   * @param bytes of the whole clusters from that one on
   */
  differing(first: number, bytes: Buffer): Promise<number[]>;
}

/**
 * Puts side by side what the chain knows and what is clean in the export.
 *
 *     known      |digest|digest|digest|   zero      |digest|
 *     clean      |zero         |      |    other           |
 *     provable   |digests, zero|      |zero, other  |digest|
 *
 * @param clean in cells that no cluster crosses
 */
export async function* provable(
  known: AsyncIterable<KnownRun>,
  clean: AsyncGenerator<CleanCells>,
): AsyncGenerator<Provable> {
  try {
    let cells = await clean.next();
    for await (const run of known) {
      const end = run.offset + run.length;
      while (!cells.done && cells.value.offset + cells.value.length <= run.offset) cells = await clean.next();
      while (!cells.done && cells.value.offset < end) {
        const { offset, length, readAsZeroes } = cells.value;
        const both = { from: Math.max(run.offset, offset), to: Math.min(end, offset + length) };
        if (both.from < both.to) yield partOf(run, both, readAsZeroes);
        if (offset + length > end) break;
        cells = await clean.next();
      }
    }
  } finally {
    await clean.return(undefined);
  }
}

/** @param from where a cluster of the run begins, and `to` where one ends */
function partOf(
  run: KnownRun,
  { from, to }: { readonly from: number; readonly to: number },
  readsAsZeroes: boolean,
): Provable {
  return new Part(run, from, to, readsAsZeroes);
}

class Part implements Provable {
  readonly offset: number;
  readonly length: number;
  readonly clusterSize: number;
  readonly count: number;
  readonly kind: "digests" | "zero";
  readonly readsAsZeroes: boolean;
  readonly #run: KnownRun;

  constructor(run: KnownRun, from: number, to: number, readsAsZeroes: boolean) {
    this.offset = from;
    this.length = to - from;
    this.clusterSize = run.kind === "zero" ? ZERO_CLUSTER : run.clusterSize;
    this.count = Math.ceil((to - from) / this.clusterSize);
    this.kind = run.kind;
    this.readsAsZeroes = readsAsZeroes;
    this.#run = run;
  }

  async differing(first: number, bytes: Buffer): Promise<number[]> {
    const run = this.#run;
    if (run.kind === "zero") return nonZero(first, bytes);
    const skipped = (this.offset - run.offset) / run.clusterSize;
    return (await run.differing(skipped + first, bytes)).map((index) => index - skipped);
  }
}

function nonZero(first: number, bytes: Buffer): number[] {
  const found: number[] = [];
  for (let at = 0; at < bytes.length; at += ZERO_CLUSTER) {
    if (!isZero(bytes, at, Math.min(at + ZERO_CLUSTER, bytes.length))) found.push(first + at / ZERO_CLUSTER);
  }
  return found;
}
