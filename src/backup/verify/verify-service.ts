import { setMaxListeners } from "node:events";
import { type Damage, DamageList, damageIn } from "../base/damage.js";
import type { DigestedRun } from "../chain/checked-image.js";
import { OpenImages, type StoredImage } from "../chain/open-images.js";
import { DIGEST_ALGORITHMS } from "../digest/algorithms.js";
import { type ClusterRun, slotsOf } from "../image/image.js";
import type { ThreadService } from "../threads/thread-pool.js";
import { lookAtFetched } from "./look-at-fetched.js";
import { lookAtRun } from "./look-at-run.js";

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
  /** Ends reads from elsewhere. */
  readonly #closing = new AbortController();

  /** @param block bytes of one read */
  constructor(block = BLOCK) {
    this.#block = block;
    // Each read listens.
    setMaxListeners(0, this.#closing.signal);
  }

  async onNotice(path: ForgottenImage): Promise<void> {
    await this.#images.close(path);
  }

  stop(): void {
    this.#closing.abort();
    this.#images.stop();
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
    const digested = runs.map((run): DigestedRun => {
      const expected = rest.subarray(0, slotsOf(run) * digestSize);
      rest = rest.subarray(expected.length);
      return { ...run, digests: algorithm && expected };
    });
    try {
      if (image.remote) {
        const file = await image.remote.open({ exact: true, signal: this.#closing.signal });
        try {
          await lookAtFetched(inUse.image, file, digested, { geometry, buffer }, found.note);
        } finally {
          await file.close();
        }
      } else {
        for (const run of digested) await lookAtRun(inUse.image, run, { geometry, buffer }, found.note);
      }
    } finally {
      this.#spare.push(buffer);
    }
    return found.list();
  }
}
