import { type Damage, damageIn, type OnDamage } from "../base/damage.js";
import { isZero } from "../base/zeroes.js";
import { type Digester, digestClusters } from "../digest/digest.js";
import {
  type ClusterRun,
  type Geometry,
  type ImageReader,
  maskStretches,
  type PartialRun,
} from "../image/image.js";
import { Qcow2Reader } from "../qcow2/reader.js";

/** A run with one digest for each stored cluster, or `undefined` if the point has no digests. */
export type DigestedRun = ClusterRun & { readonly digests: Buffer | undefined };

/** A run whose digests may still be on their way, so that they come together with the data. */
export type AwaitedRun = ClusterRun & {
  readonly digests: Buffer | undefined | Promise<Buffer | undefined>;
};

/** Bytes of one read that is expected to be zeroes. */
const ZERO_BYTES = 256 * 1024;
const NOT_ZERO = "there is data where the point has zeroes";

/** An image file whose data is compared with its digests when it is read. */
export class CheckedImage implements AsyncDisposable {
  readonly #image: ImageReader;
  readonly #geometry: Geometry;
  readonly #digester: Digester | undefined;

  /**
   * @param image belongs to this object from here on
   * @param geometry the disk's; the header of a qcow2 image has its size rounded up to a sector
   * @param digester undefined: nothing is compared
   */
  constructor(image: ImageReader, geometry: Geometry, digester: Digester | undefined) {
    this.#image = image;
    this.#geometry = geometry;
    this.#digester = digester;
  }

  /** The runs that the image itself defines: by its tables, or for a raw increment by its map. */
  runs(onDamage: OnDamage): AsyncIterable<ClusterRun> {
    return this.#image.runs(onDamage);
  }

  /** As {@link ImageReader.runBlocks}, for every image. */
  runBlocks(onDamage: OnDamage): AsyncIterable<readonly ClusterRun[]> {
    return this.#image.runBlocks?.(onDamage) ?? oneByOne(this.#image.runs(onDamage));
  }

  /**
   * Fills `target` from guest offset `offset`, which must be in `run`, and compares the digests of all
   * clusters that the read touches. Those that it touches only in part are read as a whole.
   * @param onDamage called for each cluster that can't be read or whose digest differs. If it returns,
   *   `target` holds the data as it was read, and nothing in particular for clusters that can't be read.
   * @throws {RangeError} `run` is a zero run
   * @throws what getting its digests has thrown
   * @throws what `onDamage` throws, and errors that don't concern the image
   */
  async read(run: AwaitedRun, offset: number, target: Buffer, onDamage: OnDamage): Promise<void> {
    if (run.kind === "zero") throw new RangeError("a zero run has no bytes");
    const { clusterSize, virtualSize } = this.#geometry;
    const first = Math.floor(offset / clusterSize);
    const end = Math.ceil((offset + target.length) / clusterSize);
    const start = first * clusterSize;
    const length = Math.min(end * clusterSize, virtualSize) - start;
    const whole = offset === start && target.length === length;
    const slots = whole ? target : Buffer.allocUnsafe(length);
    const hostOffset = run.hostOffset + (first - run.cluster) * clusterSize;
    const unread = await this.#readHost(hostOffset, slots);
    if (unread === undefined) {
      const digests = run.digests instanceof Promise ? await run.digests : run.digests;
      this.#compare({ ...run, digests }, first, end - first, slots, onDamage);
    } else if (end - first === 1) {
      onDamage({ message: unread, guestOffset: start, length });
      return;
    } else {
      // Read cluster by cluster, so that the damage names only the clusters that can't be read.
      for (let at = 0; at < length; at += clusterSize) {
        await this.read(run, start + at, slots.subarray(at, Math.min(at + clusterSize, length)), onDamage);
      }
    }
    if (!whole) slots.copy(target, 0, offset - start, offset - start + target.length);
  }

  /**
   * Checks that a stretch of a raw image reads as zeroes. A raw image has no tables, so the bytes are read.
   * @param offset of the disk and of the file, in bytes; a multiple of the cluster size
   * @param onDamage called for each cluster that can't be read or has other bytes
   */
  async expectZeroes(offset: number, length: number, onDamage: OnDamage): Promise<void> {
    const { clusterSize, virtualSize } = this.#geometry;
    const end = Math.min(offset + length, virtualSize);
    const step = Math.max(ZERO_BYTES, clusterSize);
    const buffer = Buffer.allocUnsafe(Math.max(0, Math.min(step, end - offset)));
    for (let at = offset; at < end; at += step) {
      const bytes = buffer.subarray(0, Math.min(step, end - at));
      if ((await this.#zeroes(at, bytes)) === undefined) continue;
      for (let within = 0; within < bytes.length; within += clusterSize) {
        const cluster = bytes.subarray(within, within + clusterSize);
        const damage = await this.#zeroes(at + within, cluster);
        if (damage !== undefined) onDamage(damage);
      }
    }
  }

  /**
   * Checks that of a cluster which is defined in part what is zero reads as zeroes. In a qcow2 image the tables
   * say that, and nothing is read.
   * @param onDamage called for each stretch of subclusters that can't be read or has other bytes
   */
  async expectZeroSubclusters({ cluster, zeroMask }: PartialRun, onDamage: OnDamage): Promise<void> {
    if (zeroMask === 0 || this.#image instanceof Qcow2Reader) return;
    const { clusterSize, virtualSize } = this.#geometry;
    const start = cluster * clusterSize;
    const slot = Buffer.allocUnsafe(Math.min(clusterSize, virtualSize - start));
    const unread = await this.#readHost(start, slot);
    for (const { offset, length } of maskStretches(zeroMask, clusterSize)) {
      const bytes = slot.subarray(offset, offset + length);
      if (bytes.length === 0) continue;
      const range = { guestOffset: start + offset, length: bytes.length };
      // Others of the cluster may be what can't be read.
      const damage = unread === undefined ? notZero(bytes, range) : await this.#zeroes(start + offset, bytes);
      if (damage !== undefined) onDamage(damage);
    }
  }

  /**
   * Compares bytes that were read from the image's file with their digests.
   * @param cluster the first one, which must be in `run`
   * @param bytes whole clusters, as the guest has them; the last one may end with the disk
   * @param onDamage called for each cluster whose digest differs
   */
  prove(run: DigestedRun, cluster: number, bytes: Buffer, onDamage: OnDamage): void {
    this.#compare(run, cluster, Math.ceil(bytes.length / this.#geometry.clusterSize), bytes, onDamage);
  }

  /**
   * Where in the file the stream of a compressed cluster is, as {@link Qcow2Reader.streamOf} tells it.
   * @throws {DamageError} the cluster is not compressed
   */
  async streamOf(cluster: number): Promise<{ readonly hostOffset: number; readonly length: number }> {
    return await this.#compressed.streamOf(cluster);
  }

  /** As {@link Qcow2Reader.decompress}. */
  async decompress(cluster: number, stream: Uint8Array): Promise<Buffer> {
    return await this.#compressed.decompress(cluster, stream);
  }

  get #compressed(): Qcow2Reader {
    if (this.#image instanceof Qcow2Reader) return this.#image;
    throw new RangeError("a raw image has no compressed clusters");
  }

  /** Whether the data of a run is compressed. */
  isCompressed({ hostOffset }: { readonly hostOffset: number }): boolean {
    return this.#image instanceof Qcow2Reader && this.#image.isCompressed(hostOffset);
  }

  close(): Promise<void> {
    return this.#image.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** @returns the damage, if the stretch can't be read or isn't all zeroes */
  async #zeroes(offset: number, bytes: Buffer): Promise<Damage | undefined> {
    const range = { guestOffset: offset, length: bytes.length };
    const unread = await this.#readHost(offset, bytes);
    return unread === undefined ? notZero(bytes, range) : { message: unread, ...range };
  }

  /**
   * @returns the damage that prevents the read, if there is one
   * @throws an error that doesn't concern the image or its medium
   */
  async #readHost(hostOffset: number, target: Buffer): Promise<string | undefined> {
    try {
      await this.#image.readHost(hostOffset, target);
      return undefined;
    } catch (error) {
      const message = damageIn(error);
      if (message === undefined) throw error;
      return message;
    }
  }

  #compare(run: DigestedRun, cluster: number, count: number, slots: Buffer, onDamage: OnDamage): void {
    const digester = this.#digester;
    if (!digester || !run.digests || run.kind === "zero") return;
    const masked = run.kind === "partial" ? { dataMask: run.dataMask } : {};
    const found = digestClusters(
      digester,
      { kind: run.kind, cluster, count, ...masked },
      slots,
      this.#geometry,
    );
    const expected = run.digests.subarray((cluster - run.cluster) * digester.size).subarray(0, found.length);
    if (found.equals(expected)) return;
    const { clusterSize, virtualSize } = this.#geometry;
    for (let i = 0; i < count; i += 1) {
      const at = i * digester.size;
      if (found.compare(expected, at, at + digester.size, at, at + digester.size) === 0) continue;
      const guestOffset = (cluster + i) * clusterSize;
      onDamage({
        message: "the data is not what was backed up: its digest differs",
        guestOffset,
        length: Math.min(clusterSize, virtualSize - guestOffset),
      });
    }
  }
}

function notZero(bytes: Buffer, range: Omit<Damage, "message">): Damage | undefined {
  return isZero(bytes) ? undefined : { message: NOT_ZERO, ...range };
}

/** Each run as a block of its own. */
async function* oneByOne<T>(runs: AsyncIterable<T>): AsyncGenerator<readonly T[]> {
  for await (const run of runs) yield [run];
}
