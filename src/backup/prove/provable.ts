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
  const clusterSize = run.kind === "zero" ? ZERO_CLUSTER : run.clusterSize;
  const part = {
    offset: from,
    length: to - from,
    clusterSize,
    count: Math.ceil((to - from) / clusterSize),
    readsAsZeroes,
  };
  if (run.kind === "zero")
    return { ...part, kind: "zero", differing: async (first, bytes) => nonZero(first, bytes) };
  const skipped = (from - run.offset) / clusterSize;
  return {
    ...part,
    kind: "digests",
    differing: async (first, bytes) =>
      (await run.differing(skipped + first, bytes)).map((index) => index - skipped),
  };
}

function nonZero(first: number, bytes: Buffer): number[] {
  const found: number[] = [];
  for (let at = 0; at < bytes.length; at += ZERO_CLUSTER) {
    if (!isZero(bytes, at, Math.min(at + ZERO_CLUSTER, bytes.length))) found.push(first + at / ZERO_CLUSTER);
  }
  return found;
}
