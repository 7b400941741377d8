import { closeAll, openAll } from "../base/in-parallel.js";
import { chooseDisks, choosePoint } from "../repository/choose-point.js";
import type { Manifest } from "../repository/manifest.js";
import type { Reading } from "../repository/reading.js";
import type { Repository } from "../repository/repository.js";
import { openingOf } from "./chain-index.js";
import { ChainView } from "./chain-view.js";
import { DiskCache, type DiskCacheOptions } from "./disk-cache.js";
import { FetchedAhead } from "./fetched-ahead.js";

/** Disks that are opened side by side. */
const OPENED_IN_STORE = 4;

export interface PointViewOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  /** Whose points are meant, where the folder has those of several domains, as for `choosePoint`. */
  readonly uuid?: string | undefined;
  /** An id, a time (the newest point not after it), or `latest`. */
  readonly at: string;
  /** Undefined: all disks of the point. */
  readonly disks?: readonly string[] | undefined;
  /** Where clusters are kept that were read; undefined: only in memory, and few. */
  readonly cache?: DiskCacheOptions | undefined;
  /** Called once, when that can't be written: what is read is not kept from then on. */
  readonly onCacheFailure?: ((error: unknown) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Stretches of a disk, in bytes, in the order in which they are wanted. */
export interface DiskReads {
  readonly disk: string;
  readonly reads: readonly { readonly offset: number; readonly length: number }[];
}

/** The disks of a point, open for reads at any place. The caller closes it. */
export class PointView implements AsyncDisposable {
  readonly point: Manifest;
  readonly disks: readonly ChainView[];

  readonly #reading: Reading;
  readonly #closed = new AbortController();
  readonly #cache: DiskCache | undefined;

  private constructor(
    point: Manifest,
    disks: readonly ChainView[],
    reading: Reading,
    cache: DiskCache | undefined,
  ) {
    this.point = point;
    this.disks = disks;
    this.#reading = reading;
    this.#cache = cache;
  }

  /**
   * Chooses the point and opens every layer that its disks need. If one fails to open, all are closed again.
   * A prune of the domain waits until the view is closed.
   * @throws {UsageError} `at` is neither a point's id nor a time, or there is no such disk; `E_CACHE`
   * @throws {PreconditionError} there is no such point
   * @throws {DamageError} a chain is not whole, or tables and digest files contradict each other
   */
  static async open(options: PointViewOptions): Promise<PointView> {
    const { repository, domain, signal } = options;
    const reading = await repository.beginReading(domain, signal);
    const disks: ChainView[] = [];
    try {
      const point = await choosePoint(repository, domain, options.at, options.uuid);
      const names = chooseDisks(point, options.disks);
      const atOnce = repository.isInStore ? Math.max(1, Math.min(OPENED_IN_STORE, names.length)) : 1;
      const opening = openingOf(atOnce);
      const open = (name: string) => ChainView.openBeside(opening, repository, domain, point, name, signal);
      disks.push(...(await openAll(names, atOnce, open)));
      return new PointView(point, disks, reading, await cacheFor(disks, options));
    } catch (error) {
      await closeAll(...disks, { close: () => reading.release() }).catch(() => undefined);
      throw error;
    }
  }

  /**
   * @throws {BackupError} `E_PRUNED_MEANWHILE`: a prune did not know that the point is read, and has changed
   *   points since the view was opened: what it shows may be gone
   */
  async assertUnpruned(): Promise<void> {
    await this.#reading.assertUnpruned();
  }

  /**
   * Reads what will be asked for, and keeps each cluster in memory until it is asked for once, or for five
   * minutes. Ends early when that is too much, or a read fails. Never rejects.
   * @param reads of which disks; they need not be of this point, nor inside the disks
   * @param mostBytes of memory
   */
  async fetchAhead(reads: readonly DiskReads[], mostBytes: number): Promise<void> {
    const ahead = new FetchedAhead(mostBytes);
    const { disks } = this;
    const fetches = (function* () {
      for (const { disk, reads: stretches } of reads) {
        const view = disks.find((each) => each.disk.name === disk);
        if (view) yield* view.fetches(stretches, ahead);
      }
    })();
    await ahead.run(fetches, this.#closed.signal);
  }

  async close(): Promise<void> {
    this.#closed.abort();
    await closeAll(this.#cache, ...this.disks, { close: () => this.#reading.release() });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** One file for all disks. */
async function cacheFor(
  disks: readonly ChainView[],
  { cache: wanted, onCacheFailure }: PointViewOptions,
): Promise<DiskCache | undefined> {
  if (!wanted) return undefined;
  const largest = Math.max(...disks.map(({ largestCluster }) => largestCluster));
  const cache = await DiskCache.create(wanted, largest, (error) => onCacheFailure?.(error));
  let key = 0;
  for (const disk of disks) key = disk.keepIn(cache, key);
  return cache;
}
