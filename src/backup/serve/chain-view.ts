import { BackupError } from "../base/errors.js";
import type { ExtentState } from "../base/extent.js";
import { closeAll } from "../base/in-parallel.js";
import { type Assurance, assuranceOf } from "../chain/assurance.js";
import { findChainSoon, openChain } from "../chain/chain.js";
import type { AwaitedRun } from "../chain/checked-image.js";
import { failOnDamage, type Layer } from "../chain/layer.js";
import { ALL_SUBCLUSTERS, clustersIn } from "../image/image.js";
import type { DiskManifest, Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { indexOf, type Opening, openingOf } from "./chain-index.js";
import { ClusterCache } from "./cluster-cache.js";
import type { DiskCache } from "./disk-cache.js";
import type { ExtentIndex, ExtentSource } from "./extent-index.js";
import type { FetchedAhead } from "./fetched-ahead.js";

/** Bytes of cached clusters, for each disk. Only clusters that were read in part are cached. */
const CACHE_BYTES = 16 * 1024 * 1024;
/** Most bytes of whole clusters in one read. */
const READ_BYTES = 1024 * 1024;
/**
 * Bytes of a layer's tables that are read at once while the disk is opened, and of those of all layers of all
 * disks that are opened side by side.
 */
const MOST_TABLE_BYTES = 4 * 1024 * 1024;
const ALL_TABLE_BYTES = 64 * 1024 * 1024;
/** Parts of one read that are read at the same time. */
const PARTS_AT_ONCE = 4;

/** A part of a read that is a single read of one layer. */
interface Part {
  readonly offset: number;
  readonly target: Buffer;
  readonly place: ExtentSource;
}

/**
 * A disk at a point, through all layers of its chain, for reads at any place and in any order. Every byte
 * that is returned was compared with its digest, if its layer has digests.
 *
 * Opening it walks over all tables and digest files, and keeps the place of each stretch of the disk in
 * memory, in 32 bytes per stretch.
 */
export class ChainView implements AsyncDisposable {
  readonly disk: DiskManifest;
  /** The points of the chain, newest first. */
  readonly chain: readonly string[];
  /** What a read without an error proves. */
  readonly assurance: Assurance;
  readonly #layers: readonly Layer[];
  readonly #index: ExtentIndex;
  readonly #cache: ClusterCache;
  /** Undefined: nothing is kept on a disk. */
  #onDisk: { readonly cache: DiskCache; readonly firstKeys: readonly number[] } | undefined;
  /** Undefined: nothing is read before it is asked for. */
  #ahead: FetchedAhead | undefined;

  private constructor(layers: readonly Layer[], disk: DiskManifest, index: ExtentIndex) {
    this.disk = disk;
    this.chain = layers.map((layer) => layer.pointId);
    this.assurance = assuranceOf(layers);
    this.#layers = layers;
    this.#index = index;
    this.#cache = new ClusterCache(Math.max(4, Math.floor(CACHE_BYTES / this.largestCluster)));
  }

  /**
   * @param domain the name of its folder in the repository
   * @throws {DamageError} the chain is not whole, or its tables and its digest files contradict each other
   */
  static async open(
    repository: Repository,
    domain: string,
    point: Manifest,
    diskName: string,
    signal?: AbortSignal,
  ): Promise<ChainView> {
    return await ChainView.openBeside(openingOf(1), repository, domain, point, diskName, signal);
  }

  /**
   * @internal
   * Like `open`, beside other disks.
   */
  static async openBeside(
    opening: Opening,
    ...[repository, domain, point, diskName, signal]: Parameters<typeof ChainView.open>
  ): Promise<ChainView> {
    const links = await findChainSoon(repository, domain, point, diskName);
    const { limit, disks } = opening;
    const tableBytes = Math.min(MOST_TABLE_BYTES, Math.floor(ALL_TABLE_BYTES / disks / links.length));
    const layers = await openChain(repository, domain, links, { signal, tableBytes, limit });
    try {
      const disk = links[0]?.disk;
      if (!disk) throw new RangeError("a chain has one link at least");
      return new ChainView(layers, disk, await indexOf(layers, disk.virtualSize, opening, signal));
    } catch (error) {
      await closeAll(...layers).catch(() => undefined);
      throw error;
    }
  }

  /** Bytes that the guest sees. */
  get size(): number {
    return this.disk.virtualSize;
  }

  /** Bytes of the largest cluster of a layer. */
  get largestCluster(): number {
    return Math.max(...this.#layers.map((layer) => layer.geometry.clusterSize));
  }

  /**
   * @internal
   * From here on, clusters are kept in `cache`, which stays the caller's.
   * @param firstKey the first key that nobody else uses
   * @returns the first one that this disk does not use
   */
  keepIn(cache: DiskCache, firstKey: number): number {
    const firstKeys: number[] = [];
    let next = firstKey;
    for (const { geometry } of this.#layers) {
      firstKeys.push(next);
      next += clustersIn(geometry);
    }
    this.#onDisk = { cache, firstKeys };
    return next;
  }

  /**
   * @internal
   * The reads that some stretches need, in the order of the stretches, each to be called once. They put into
   * `ahead` what they have proven, and from here on reads take it from there.
   * @param stretches in bytes; they need not be inside the disk
   */
  *fetches(
    stretches: Iterable<{ readonly offset: number; readonly length: number }>,
    ahead: FetchedAhead,
  ): Generator<() => Promise<void>> {
    this.#ahead = ahead;
    for (const { offset, length } of stretches) {
      if (offset >= this.size) continue;
      for (const piece of this.#index.extents(offset, Math.min(this.size, offset + length))) {
        if (piece.place) yield* this.#fetchesOf(piece, piece.place, ahead);
      }
    }
  }

  *#fetchesOf(
    piece: { readonly offset: number; readonly length: number },
    place: ExtentSource,
    ahead: FetchedAhead,
  ): Generator<() => Promise<void>> {
    const layer = this.#layer(place);
    const { clusterSize, virtualSize } = layer.geometry;
    const first = Math.floor(piece.offset / clusterSize);
    const end = Math.ceil((piece.offset + piece.length) / clusterSize);
    const most = Math.max(1, Math.floor(READ_BYTES / clusterSize));
    for (let from = first; from < end; from += most) {
      const numbers = Array.from({ length: Math.min(most, end - from) }, (_, i) => from + i);
      const isWanted = (cluster: number): boolean => ahead.isWanted(this.#aheadKey(place, cluster));
      const start = numbers.find(isWanted);
      if (start === undefined) continue;
      const clusters = numbers.slice(start - from, numbers.findLastIndex(isWanted) + 1).map((cluster) => ({
        key: this.#aheadKey(place, cluster),
        length: Math.min(clusterSize, virtualSize - cluster * clusterSize),
      }));
      const read = (target: Buffer): Promise<void> =>
        this.#readKept(behind(place, start - first, layer), start * clusterSize, target);
      yield () => ahead.fetch(clusters, read);
    }
  }

  /** Number of stretches of the disk that are kept in memory. */
  get pieces(): number {
    return this.#index.length;
  }

  /** The extents of `length` bytes from `offset` on, without gaps; looked up lazily. */
  *extents(offset: number, length: number): Generator<{ length: number; state: ExtentState }> {
    for (const piece of this.#index.extents(offset, offset + length)) {
      yield { length: piece.length, state: piece.place ? "data" : "zero" };
    }
  }

  /**
   * Reads `length` bytes from `offset` on into a new buffer, which the caller owns.
   * @throws {DamageError} a cluster differs from what was backed up; names point, disk and guest offset
   * @throws {BackupError} the file system failed; has its `code` and the place
   */
  async read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer> {
    const bytes = Buffer.allocUnsafe(length);
    await this.#fillAll(this.#parts(offset, bytes), signal);
    return bytes;
  }

  async close(): Promise<void> {
    await closeAll(...this.#layers);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** The parts that have to be read to fill `target`. Fills zeroes at once. */
  *#parts(from: number, target: Buffer): Generator<Part> {
    for (const { offset, length, place } of this.#index.extents(from, from + target.length)) {
      const bytes = target.subarray(offset - from, offset - from + length);
      if (place) yield* partsOf(offset, bytes, place, this.#layer(place));
      else bytes.fill(0);
    }
  }

  /**
   * Settles when no part is being read any longer. Doesn't derive a signal from `signal`, because in Node 20
   * derived signals are never freed.
   */
  async #fillAll(parts: Iterator<Part>, signal: AbortSignal | undefined): Promise<void> {
    let failed = false;
    const lane = async (): Promise<void> => {
      for (let next = parts.next(); !next.done && !failed; next = parts.next()) {
        try {
          signal?.throwIfAborted();
          await this.#fill(next.value);
        } catch (error) {
          failed = true;
          throw error;
        }
      }
    };
    const outcomes = await Promise.allSettled(Array.from({ length: PARTS_AT_ONCE }, lane));
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  }

  async #fill({ offset, target, place }: Part): Promise<void> {
    const layer = this.#layer(place);
    const { clusterSize, virtualSize } = layer.geometry;
    const cluster = Math.floor(offset / clusterSize);
    const start = cluster * clusterSize;
    const whole = Math.min(clusterSize, virtualSize - start);
    try {
      if (offset === start && target.length >= whole && place.dataMask === ALL_SUBCLUSTERS) {
        await this.#read(place, offset, target);
        return;
      }
      const bytes = await this.#cache.get(`${place.layer}:${cluster}`, async () => {
        const slot = Buffer.allocUnsafe(whole);
        await this.#read(place, start, slot);
        return slot;
      });
      bytes.copy(target, 0, offset - start, offset - start + target.length);
    } catch (error) {
      throw located(error, layer, offset);
    }
  }

  /** Fills `target`, which begins with the cluster at `place`, with whole clusters. */
  async #read(place: ExtentSource, offset: number, target: Buffer): Promise<void> {
    const ahead = this.#ahead;
    if (!ahead || ahead.isOver) return await this.#readKept(place, offset, target);
    const { clusterSize } = this.#layer(place).geometry;
    const find = (number: number) => ahead.take(this.#aheadKey(place, offset / clusterSize + number));
    const read = this.#readKept.bind(this);
    await this.#fillFrom({ find, read }, place, offset, target);
  }

  async #readKept(place: ExtentSource, offset: number, target: Buffer): Promise<void> {
    const layer = this.#layer(place);
    if (!this.#onDisk) return await readProven(layer, place, offset, target);
    const { cache, firstKeys } = this.#onDisk;
    const { clusterSize } = layer.geometry;
    const firstKey = (firstKeys[place.layer] as number) + offset / clusterSize;
    const find = (number: number, length: number) => cache.get(firstKey + number, length);
    const read = async (from: ExtentSource, start: number, missing: Buffer): Promise<void> => {
      await readProven(layer, from, start, missing);
      const before = firstKey + (start - offset) / clusterSize;
      for (const [i, bytes] of clustersOf(missing, clusterSize).entries()) cache.put(before + i, bytes);
    };
    await this.#fillFrom({ find, read }, place, offset, target);
  }

  /**
   * Fills `target` with the clusters that `find` has, by their number in it. All from the first to the last
   * that it hasn't are read.
   */
  async #fillFrom(
    {
      find,
      read,
    }: {
      readonly find: (number: number, length: number) => Promise<Buffer | undefined> | undefined;
      readonly read: (place: ExtentSource, offset: number, target: Buffer) => Promise<void>;
    },
    place: ExtentSource,
    offset: number,
    target: Buffer,
  ): Promise<void> {
    const layer = this.#layer(place);
    const { clusterSize } = layer.geometry;
    const clusters = clustersOf(target, clusterSize);
    const found = await Promise.all(clusters.map((bytes, i) => find(i, bytes.length)));
    for (const [i, bytes] of found.entries()) bytes?.copy(target, i * clusterSize);
    const first = found.indexOf(undefined);
    if (first < 0) return;
    const start = first * clusterSize;
    const end = (found.lastIndexOf(undefined) + 1) * clusterSize;
    await read(behind(place, first, layer), offset + start, target.subarray(start, end));
  }

  #aheadKey({ layer }: ExtentSource, cluster: number): string {
    return `${this.disk.name}:${layer}:${cluster}`;
  }

  #layer(place: ExtentSource): Layer {
    return this.#layers[place.layer] as Layer;
  }
}

/**
 * Cuts a piece into reads. Whole clusters are read directly into the target, several at a time. A cluster
 * that is needed in part is a part of its own, because all of it has to be read to compare its digest.
 *
 *     clusters   |        |        |        |        |
 *     piece          |~~~~~~~~~~~~~~~~~~~~~~~~~~~|
 *     parts          |~~~~|~~~~~~~~~~~~~~~~~|~~~~|
 */
function* partsOf(offset: number, target: Buffer, place: ExtentSource, layer: Layer): Generator<Part> {
  const { clusterSize, virtualSize } = layer.geometry;
  const end = offset + target.length;
  const first = Math.floor(offset / clusterSize);
  for (let at = offset; at < end; ) {
    const cluster = Math.floor(at / clusterSize);
    const lastWhole = end >= virtualSize ? end : Math.floor(end / clusterSize) * clusterSize;
    const isWhole = at === cluster * clusterSize && lastWhole > at;
    const most = isWhole ? Math.max(clusterSize, READ_BYTES) : clusterSize;
    const stop = Math.min(isWhole ? lastWhole : end, cluster * clusterSize + most);
    yield {
      offset: at,
      target: target.subarray(at - offset, stop - offset),
      place: behind(place, cluster - first, layer),
    };
    at = stop;
  }
}

/** The place of a later cluster of the same extent. */
function behind(place: ExtentSource, clusters: number, { geometry, digestSize }: Layer): ExtentSource {
  return {
    ...place,
    hostOffset: place.hostOffset + clusters * geometry.clusterSize,
    digestsAt: place.digestsAt + clusters * digestSize,
  };
}

function clustersOf(bytes: Buffer, clusterSize: number): Buffer[] {
  const clusters: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += clusterSize) clusters.push(bytes.subarray(at, at + clusterSize));
  return clusters;
}

/** Fills `target`, which begins with the cluster at `place`, and compares the digests. */
async function readProven(layer: Layer, place: ExtentSource, offset: number, target: Buffer): Promise<void> {
  const { clusterSize } = layer.geometry;
  const { hostOffset, dataMask } = place;
  const cluster = offset / clusterSize;
  const count = Math.ceil(target.length / clusterSize);
  const digests = layer.digestsAt(place.digestsAt, count);
  // They are waited for when the data is there, unless that fails before.
  digests.catch(() => undefined);
  const run: AwaitedRun =
    dataMask === ALL_SUBCLUSTERS
      ? { kind: "data", cluster, count, hostOffset, digests }
      : { kind: "partial", cluster, count: 1, hostOffset, dataMask, zeroMask: 0, digests };
  await layer.read(run, offset, target, failOnDamage(layer));
}

/** Adds point, disk and guest offset to the error of a failed read. */
function located(error: unknown, layer: Layer, guestOffset: number): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (!(error instanceof Error) || code === undefined) return error;
  const known = error instanceof BackupError ? error : new BackupError(code, error.message, { cause: error });
  if (known.details["guestOffset"] !== undefined) return known;
  const { pointId: point, disk } = layer;
  const where = `disk ${disk.name} of point ${point} cannot be read at guest offset ${guestOffset}`;
  return known.of(`${where}: ${known.message}`, { point, disk: disk.name, guestOffset });
}
