/**
 * The prove room compares a disk with the chain that an increment of it would be based on. A dirty bitmap is
 * known by its name only, and lies in whatever image stands at the disk's place. So it can belong to another
 * disk, or to an older state of this one, and what it calls clean then isn't what the chain has there. The
 * chain's digests tell: some clusters, chosen at random, or all of them are read from the export and
 * compared.
 *
 * Read this file first, then provable.ts (which clusters can be compared), choose-clusters.ts (which of them
 * are) with reservoir.ts and seeded-random.ts. What the chain knows is in chain/known-runs.ts, what is clean
 * in export/clean-cells.ts.
 *
 * Nothing here writes, to the export or to the repository, or decides what follows from the outcome.
 */

import { type NbdClient, RequestError } from "../../nbd/index.js";
import { allOrNone } from "../base/in-parallel.js";
import { findChain } from "../chain/chain.js";
import { KnownChain } from "../chain/known-runs.js";
import { cleanCells } from "../export/clean-cells.js";
import { mayReadClean } from "../export/open-export.js";
import type { Manifest } from "../repository/manifest.js";
import { diskOf } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { ClusterChoice, offsetOf } from "./choose-clusters.js";
import { type Provable, provable, ZERO_CLUSTER } from "./provable.js";
import { newSeed, SeededRandom } from "./seeded-random.js";

/** How many clusters are compared. */
export type ProofAmount = number | "all";

export interface ProofOptions {
  /** Connected by `openExport`, with the context of `bitmap`. */
  readonly client: NbdClient;
  readonly bitmap: string;
  readonly repository: Repository;
  /** Name of the domain's folder. */
  readonly domain: string;
  /** The point that the bitmap counts changes from. */
  readonly parent: Manifest;
  readonly disk: string;
  readonly amount: ProofAmount;
  /** Decides which clusters are chosen; default: a new one. */
  readonly seed?: string | undefined;
  readonly rateLimit?: { take(bytes: number, signal: AbortSignal): Promise<void> } | undefined;
  readonly signal: AbortSignal;
  /** Called for each cluster that differs; returns whether to go on. Default: the first one is the last. */
  readonly onDiffering?:
    | ((cluster: { readonly guestOffset: number; readonly length: number }) => boolean)
    | undefined;
  /** Called with the number of guest bytes that have been compared since the last call. */
  readonly onBytes?: ((bytes: number) => void) | undefined;
}

export interface Proof {
  /** The clusters that were compared, apart from zeroes that the server's map promises. */
  readonly compared: number;
  /** Guest offset of the first cluster that was found to differ. */
  readonly differing: number | undefined;
  /** The seed of the choice; undefined if there was none, because all were compared. */
  readonly seed: string | undefined;
  /** Clusters that the server could not read. */
  readonly unread: number;
  /** Why nothing could be compared. */
  readonly impossible?: string | undefined;
}

/** Reads under way at the same time. */
const LANES = 8;
/** Most bytes of one read, but never less than a cluster. */
const READ_BYTES = 512 * 1024;

/**
 * Compares clusters that a bitmap calls clean with what the chain has there. Ends at the first that differs,
 * unless `onDiffering` wants more.
 *
 * @throws {DamageError} a digest file of the chain is damaged, so it can't tell what differs
 * @throws {NbdError} the connection failed, or the block status
 */
export async function proveBase(options: ProofOptions): Promise<Proof> {
  const { client, bitmap, parent, disk, amount, signal } = options;
  if (!mayReadClean(client, bitmap)) return impossible("the server lets only changed bytes be read");
  await using chain = await openChain(options);
  if (!chain.hasDigests) return impossible(`the chain of point ${parent.id} has no digests`);
  const size = Math.min(client.export.size, diskOf(parent, disk)?.virtualSize ?? 0);
  const walk = (): AsyncGenerator<Provable> => {
    const cellBytes = Math.max(ZERO_CLUSTER, chain.largestCluster);
    return provable(chain.runs(size), cleanCells(client, { ...options, cellBytes }));
  };
  let seed: string | undefined;
  const comparison = new Comparison(options);
  if (amount === "all") {
    await comparison.run(allOf(walk(), comparison));
  } else {
    seed = options.seed ?? newSeed();
    const choice = new ClusterChoice(amount, size, new SeededRandom(seed));
    for await (const run of walk()) {
      signal.throwIfAborted();
      choice.offer(run);
    }
    await comparison.run(choice.chosen().map(({ run, index }) => ({ run, first: index, count: 1 })));
  }
  const { compared, unread, differing, refusal } = comparison;
  if (differing !== undefined) await chain.assertIntact();
  if (compared === 0 && refusal !== undefined) {
    return impossible(`the server could not read what is clean (${refusal.message})`);
  }
  return { compared, unread, differing, seed };
}

async function openChain({ repository, domain, parent, disk }: ProofOptions): Promise<KnownChain> {
  return await KnownChain.open(repository, domain, await findChain(repository, domain, parent, disk));
}

function impossible(why: string): Proof {
  return { compared: 0, unread: 0, differing: undefined, seed: undefined, impossible: why };
}

/** Clusters side by side that one read compares. */
interface Piece {
  readonly run: Provable;
  /** Index of the first cluster in the run. */
  readonly first: number;
  readonly count: number;
}

/** Everything that can be compared. Zeroes on both sides need no read. */
async function* allOf(runs: AsyncIterable<Provable>, comparison: Comparison): AsyncGenerator<Piece> {
  for await (const run of runs) {
    if (run.kind === "zero" && run.readsAsZeroes) {
      comparison.passed(run);
      continue;
    }
    const most = Math.max(1, Math.floor(READ_BYTES / run.clusterSize));
    for (let first = 0; first < run.count; first += most) {
      yield { run, first, count: Math.min(most, run.count - first) };
    }
  }
}

/** Reads pieces by several lanes and compares them. */
class Comparison {
  compared = 0;
  unread = 0;
  differing: number | undefined;
  /** The first read that the server refused. */
  refusal: RequestError | undefined;
  readonly #options: ProofOptions;
  #isOver = false;

  constructor(options: ProofOptions) {
    this.#options = options;
  }

  async run(pieces: Iterable<Piece> | AsyncGenerator<Piece>): Promise<void> {
    const queue = Symbol.asyncIterator in pieces ? pieces : asynchronously(pieces);
    const lanes = Array.from({ length: LANES }, (_, i) => i);
    try {
      await allOrNone(lanes, LANES, this.#options.signal, async (_, signal) => {
        let buffer = Buffer.alloc(0);
        while (!this.#isOver) {
          const next = await queue.next();
          if (next.done) return;
          signal.throwIfAborted();
          const most = next.value.count * next.value.run.clusterSize;
          if (buffer.length < most) buffer = Buffer.allocUnsafeSlow(most);
          await this.#compare(next.value, buffer, signal);
        }
      });
    } finally {
      await queue.return(undefined);
    }
  }

  /** Counts a run that needs no read. */
  passed({ count, length }: Provable): void {
    this.compared += count;
    this.#options.onBytes?.(length);
  }

  /** @param buffer has room for the clusters */
  async #compare({ run, first, count }: Piece, buffer: Buffer, signal: AbortSignal): Promise<void> {
    const offset = offsetOf({ run, index: first });
    const length = Math.min(count * run.clusterSize, run.offset + run.length - offset);
    await this.#options.rateLimit?.take(length, signal);
    const bytes = buffer.subarray(0, length);
    try {
      // Without the signal: an abort in mid-reply closes the connection, which not every guest survives.
      await this.#options.client.read(offset, bytes);
    } catch (error) {
      if (!(error instanceof RequestError) || error.code !== "NBD_REQUEST_FAILED") throw error;
      this.refusal ??= error;
      // Only the clusters that can't be read are left out.
      for (let i = 0; count > 1 && i < count && !this.#isOver; i += 1) {
        await this.#compare({ run, first: first + i, count: 1 }, buffer, signal);
      }
      if (count > 1) return;
      this.unread += 1;
      // A server that refuses what is clean refuses all of it.
      if (this.compared === 0 && this.unread > LANES) this.#isOver = true;
      return;
    }
    signal.throwIfAborted();
    const wrong = await run.differing(first, bytes);
    this.compared += count;
    this.#options.onBytes?.(length);
    for (const index of wrong) {
      const guestOffset = offsetOf({ run, index });
      this.differing = Math.min(this.differing ?? guestOffset, guestOffset);
      const clusterBytes = Math.min(run.clusterSize, run.offset + run.length - guestOffset);
      if (!this.#options.onDiffering?.({ guestOffset, length: clusterBytes })) this.#isOver = true;
    }
  }
}

async function* asynchronously<T>(items: Iterable<T>): AsyncGenerator<T> {
  yield* items;
}
