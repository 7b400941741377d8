import { type Damage, DamageList, damageIn, type OnDamage } from "../base/damage.js";
import type { CheckedImage, DigestedRun } from "../chain/checked-image.js";
import { OpenImages, type StoredImage } from "../chain/open-images.js";
import { DIGEST_ALGORITHMS } from "../digest/algorithms.js";
import { type ClusterRun, type Geometry, slotsOf } from "../image/image.js";
import type { ThreadService } from "../threads/thread-pool.js";

export interface VerifyQuestion {
  readonly image: StoredImage;
  /** In guest order; zero runs are checked byte by byte. */
  readonly runs: readonly ClusterRun[];
  /** The digests of the runs' stored clusters, one after the other. */
  readonly digests: Uint8Array<ArrayBuffer>;
}

/** The damage found, in guest order. */
export type VerifyAnswer = readonly Damage[];

/** Path of an image that gets no more questions. */
export type ForgottenImage = string;

/** Bytes of one read, small enough to stay in the processor's cache until they are digested. */
const BLOCK = 256 * 1024;

/** Reads stretches of images and reports damage. Each question under way has a buffer. */
export class VerifyService implements ThreadService<VerifyQuestion, VerifyAnswer, ForgottenImage> {
  readonly #images = new OpenImages();
  readonly #block: number;
  readonly #spare: Buffer[] = [];

  /** @param block bytes of one read */
  constructor(block = BLOCK) {
    this.#block = block;
  }

  async onNotice(path: ForgottenImage): Promise<void> {
    await this.#images.close(path);
  }

  async close(): Promise<void> {
    await this.#images.closeAll();
  }

  async answer({ image, runs, digests }: VerifyQuestion): Promise<VerifyAnswer> {
    const { geometry, algorithm } = image;
    const digestSize = algorithm === undefined ? 0 : DIGEST_ALGORITHMS[algorithm].bytes;
    let opened: Awaited<ReturnType<OpenImages["get"]>>;
    try {
      opened = await this.#images.get(image);
    } catch (error) {
      // The walk could open the image, so it was changed meanwhile.
      const message = damageIn(error);
      if (message === undefined) throw error;
      return [{ message }];
    }
    using inUse = opened;
    const found = new DamageList(Number.POSITIVE_INFINITY);
    const spare = this.#spare.pop();
    const least = Math.max(this.#block, geometry.clusterSize);
    const buffer = spare && spare.length >= least ? spare : Buffer.allocUnsafeSlow(least);
    let rest = Buffer.from(digests.buffer);
    try {
      for (const run of runs) {
        const expected = rest.subarray(0, slotsOf(run) * digestSize);
        rest = rest.subarray(expected.length);
        await lookAtRun(
          inUse.image,
          { ...run, digests: algorithm && expected },
          { geometry, buffer },
          found.note,
        );
      }
    } finally {
      this.#spare.push(buffer);
    }
    return found.list();
  }
}

async function lookAtRun(
  image: CheckedImage,
  run: DigestedRun,
  { geometry, buffer }: { readonly geometry: Geometry; readonly buffer: Buffer },
  note: OnDamage,
): Promise<void> {
  const { clusterSize, virtualSize } = geometry;
  const offset = run.cluster * clusterSize;
  const end = Math.min(offset + run.count * clusterSize, virtualSize);
  if (run.kind === "zero") {
    await image.expectZeroes(offset, end - offset, note);
    return;
  }
  for (let at = offset; at < end; at += buffer.length) {
    await image.read(run, at, buffer.subarray(0, Math.min(buffer.length, end - at)), note);
  }
}
