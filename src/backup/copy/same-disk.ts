import { findChain } from "../chain/chain.js";
import { KnownChain, type KnownClusters, type KnownRun } from "../chain/known-runs.js";
import { diskOf, type Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";

/** A point in one of the repositories. */
interface PointOf {
  readonly repository: Repository;
  readonly domain: string;
  readonly point: Manifest;
}

/** Clusters whose digests are compared at a time. */
const CLUSTERS_AT_ONCE = 4096;
/** The same where zeroes have to be made for it. */
const ZERO_CLUSTERS = 16;

/** What the digests of two points tell of a disk. */
interface Comparison {
  /** Where they differ, in bytes of the guest; undefined: nowhere, as far as both know. */
  readonly differsAt: number | undefined;
  /** Clusters of which both know what they must be. */
  readonly compared: number;
  /** Whether the first point's disk has clusters with digests. */
  readonly hasDigests: boolean;
}

/**
 * Compares two points of the same id by their digests. Their images may differ: a prune has merged one of
 * them. Where only one of them knows a digest, nothing can be told.
 * @throws {DamageError} a chain is broken, or a digest file malformed
 */
export async function compareDisks(
  one: PointOf,
  other: PointOf,
  disk: string,
  signal: AbortSignal,
): Promise<Comparison> {
  await using chain = await knownOf(one, disk);
  await using chainOfOther = await knownOf(other, disk);
  const size = diskOf(one.point, disk)?.virtualSize ?? 0;
  const theirs = new Known(chainOfOther.runs(size));
  let hasDigests = false;
  try {
    for await (const run of chain.runs(size)) {
      signal.throwIfAborted();
      hasDigests ||= run.kind === "digests";
      const differsAt = await theirs.compare(run);
      if (differsAt !== undefined) return { differsAt, compared: theirs.compared, hasDigests };
    }
    await chain.assertIntact();
    await chainOfOther.assertIntact();
    return { differsAt: undefined, compared: theirs.compared, hasDigests };
  } finally {
    await theirs.close();
  }
}

async function knownOf({ repository, domain, point }: PointOf, disk: string): Promise<KnownChain> {
  return await KnownChain.open(repository, domain, await findChain(repository, domain, point, disk));
}

/** What one chain knows, looked up in guest order. */
class Known {
  /** Clusters that were compared. */
  compared = 0;
  readonly #runs: AsyncGenerator<KnownRun>;
  /** The runs that may reach into what is looked up next. */
  #ahead: KnownRun[] = [];
  #isDone = false;

  constructor(runs: AsyncGenerator<KnownRun>) {
    this.#runs = runs;
  }

  /** Where another chain's run differs from what this one knows; undefined: nowhere. */
  async compare(run: KnownRun): Promise<number | undefined> {
    const end = run.offset + run.length;
    this.#ahead = this.#ahead.filter(({ offset, length }) => offset + length > run.offset);
    while (!this.#isDone && (this.#ahead.at(-1)?.offset ?? 0) < end) {
      const next = await this.#runs.next();
      if (next.done) this.#isDone = true;
      else this.#ahead.push(next.value);
    }
    for (const known of this.#ahead) {
      const found = await this.#differenceOf(run, known);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  async #differenceOf(one: KnownRun, other: KnownRun): Promise<number | undefined> {
    const from = Math.max(one.offset, other.offset);
    const to = Math.min(one.offset + one.length, other.offset + other.length);
    if (from >= to) return undefined;
    if (one.kind === "zero") return other.kind === "zero" ? undefined : await this.#notZero(other, from, to);
    if (other.kind === "zero") return await this.#notZero(one, from, to);
    const { clusterSize, algorithm, dataMask } = one;
    const isSameKind = other.algorithm === algorithm && other.dataMask === dataMask;
    if (other.clusterSize !== clusterSize || !isSameKind) return undefined;
    for (const { at, count } of steps(from, to, clusterSize)) {
      const [a, b] = await Promise.all(
        [one, other].map((run) => run.digests((at - run.offset) / clusterSize, count)),
      );
      this.compared += count;
      if (!a || !b || a.equals(b)) continue;
      const size = a.length / count;
      for (let i = 0; i < count; i += 1) {
        const [begin, end] = [i * size, (i + 1) * size];
        if (a.compare(b, begin, end, begin, end) !== 0) return at + i * clusterSize;
      }
    }
    return undefined;
  }

  /** The first of the whole clusters between these offsets that is not all zeroes, by its digest. */
  async #notZero(run: KnownClusters, from: number, to: number): Promise<number | undefined> {
    const { clusterSize, offset, length } = run;
    const first = Math.ceil((from - offset) / clusterSize);
    const end = to >= offset + length ? run.count : Math.floor((to - offset) / clusterSize);
    if (first >= end) return undefined;
    // The last cluster may end with the disk.
    const stop = Math.min(offset + end * clusterSize, offset + length);
    for (const { at, count } of steps(offset + first * clusterSize, stop, clusterSize, ZERO_CLUSTERS)) {
      const zeroes = Buffer.alloc(Math.min(count * clusterSize, stop - at));
      const [different] = await run.differing((at - offset) / clusterSize, zeroes);
      this.compared += count;
      if (different !== undefined) return offset + different * clusterSize;
    }
    return undefined;
  }

  async close(): Promise<void> {
    await this.#runs.return(undefined);
  }
}

function* steps(
  from: number,
  to: number,
  clusterSize: number,
  most = CLUSTERS_AT_ONCE,
): Generator<{ readonly at: number; readonly count: number }> {
  for (let at = from; at < to; at += most * clusterSize) {
    yield { at, count: Math.ceil((Math.min(to, at + most * clusterSize) - at) / clusterSize) };
  }
}
