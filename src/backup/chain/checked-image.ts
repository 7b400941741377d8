import { type Damage, damageIn, type OnDamage } from "../base/damage.js";
import { isZero } from "../base/zeroes.js";
import { type Digester, digestClusters } from "../digest/digest.js";
import type { ClusterRun, Geometry, ImageReader } from "../image/image.js";

/** Clusters of an image, with their digests where the point has them: one for each cluster that is stored. */
export type DigestedRun = ClusterRun & { readonly digests: Buffer | undefined };

/** Zeroes are looked for in pieces of this size. */
const ZERO_BYTES = 256 * 1024;

/** An image file whose bytes are held against their digests as they are read. */
export class CheckedImage implements AsyncDisposable {
  readonly #image: ImageReader;
  readonly #geometry: Geometry;
  readonly #digester: Digester | undefined;

  /** @param geometry the disk's; a qcow2 image's own size is that, rounded up to a sector */
  constructor(image: ImageReader, geometry: Geometry, digester: Digester | undefined) {
    this.#image = image;
    this.#geometry = geometry;
    this.#digester = digester;
  }

  /** What the image itself says that it defines. */
  runs(onDamage: OnDamage): AsyncIterable<ClusterRun> {
    return this.#image.runs(onDamage);
  }

  /**
   * Fills `target` from byte `offset` of the guest, which lies in the data of `run`, after the digests of the
   * clusters that it touches were compared.
   */
  async read(run: DigestedRun, offset: number, target: Buffer, onDamage: OnDamage): Promise<void> {
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
      this.#compare(run, first, end - first, slots, onDamage);
    } else if (end - first === 1) {
      onDamage({ message: unread, guestOffset: start, length });
      return;
    } else {
      // Each is judged by itself, and none hides another.
      for (let at = 0; at < length; at += clusterSize) {
        await this.read(run, start + at, slots.subarray(at, Math.min(at + clusterSize, length)), onDamage);
      }
    }
    if (!whole) slots.copy(target, 0, offset - start, offset - start + target.length);
  }

  /** Looks at a stretch of a raw image that should read as zeroes: only the bytes themselves can tell. */
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

  close(): Promise<void> {
    return this.#image.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** @returns what is wrong with the stretch */
  async #zeroes(offset: number, bytes: Buffer): Promise<Damage | undefined> {
    const place = { guestOffset: offset, length: bytes.length };
    const unread = await this.#readHost(offset, bytes);
    if (unread !== undefined) return { message: unread, ...place };
    return isZero(bytes) ? undefined : { message: "there is data where the point has zeroes", ...place };
  }

  /** @returns why it can't be read, if it is the image or its medium that is to blame */
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
