import { findChain } from "../chain/chain.js";
import { KnownChain, type KnownRun } from "../chain/known-runs.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";

/** A point in one of the repositories. */
export interface PointOf {
  readonly repository: Repository;
  readonly domain: string;
  readonly point: Manifest;
}

/** Clusters whose digests are compared at a time. */
const CLUSTERS_AT_ONCE = 4096;

/**
 * Whether two points of the same id show the same content of a disk, as far as their digests tell. Their images
 * may differ: a prune has merged one of them. Where only one of them knows a digest, nothing can be told.
 * @returns where they differ, in bytes of the guest; undefined: nowhere
 * @throws {DamageError} a chain is broken, or a digest file malformed
 */
export async function firstDifference(
  one: PointOf,
  other: PointOf,
  disk: string,
  signal: AbortSignal,
): Promise<number | undefined> {
  await using chain = await knownOf(one, disk);
  await using chainOfOther = await knownOf(other, disk);
  const size = one.point.disks.find(({ name }) => name === disk)?.virtualSize ?? 0;
  const theirs = new Known(chainOfOther.runs(size));
  try {
    for await (const run of chain.runs(size)) {
      signal.throwIfAborted();
      const found = await theirs.compare(run);
      if (found !== undefined) return found;
    }
    await chain.assertIntact();
    await chainOfOther.assertIntact();
    return undefined;
  } finally {
    await theirs.close();
  }
}

async function knownOf({ repository, domain, point }: PointOf, disk: string): Promise<KnownChain> {
  return await KnownChain.open(repository, domain, await findChain(repository, domain, point, disk));
}

/** What one chain knows, looked up in guest order. */
class Known {
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
      const found = await differenceOf(run, known);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  async close(): Promise<void> {
    await this.#runs.return(undefined);
  }
}

async function differenceOf(one: KnownRun, other: KnownRun): Promise<number | undefined> {
  if (one.kind === "zero" || other.kind === "zero") return undefined;
  const { clusterSize, algorithm, dataMask } = one;
  const isSameKind = other.algorithm === algorithm && other.dataMask === dataMask;
  if (other.clusterSize !== clusterSize || !isSameKind) return undefined;
  const from = Math.max(one.offset, other.offset);
  const to = Math.min(one.offset + one.length, other.offset + other.length);
  const step = CLUSTERS_AT_ONCE * clusterSize;
  for (let at = from; at < to; at += step) {
    const count = Math.ceil((Math.min(to, at + step) - at) / clusterSize);
    const [a, b] = await Promise.all(
      [one, other].map((run) => run.digests((at - run.offset) / clusterSize, count)),
    );
    if (!a || !b || a.equals(b)) continue;
    const size = a.length / count;
    for (let i = 0; i < count; i += 1) {
      if (a.compare(b, i * size, (i + 1) * size, i * size, (i + 1) * size) !== 0) return at + i * clusterSize;
    }
  }
  return undefined;
}
