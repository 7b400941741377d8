import { type Damage, damageIn } from "../base/damage.js";
import { BackupError } from "../base/errors.js";
import type { CheckedImage, DigestedRun } from "./checked-image.js";
import { OpenImages, type StoredImage } from "./open-images.js";

/** The first damage that a thread has found, and the index of its image among those of the question. */
export interface FoundDamage {
  readonly damage: Damage;
  readonly image: number;
}

/** An error of the file system, about a target or an image; or one of ours. */
export interface FileFailure {
  readonly code: string;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

/** Bytes of a block: they stay in the processor's cache between reading, digesting and writing. */
const BLOCK = 256 * 1024;

/**
 * Reads images block by block for a thread, and compares every cluster with its digest. One buffer is enough,
 * since a thread answers one question at a time.
 */
export class ProvenBlocks {
  readonly #images = new OpenImages();
  #buffer = Buffer.allocUnsafeSlow(BLOCK);

  /**
   * Reads a stretch of the disk. All blocks but the last end at a cluster boundary.
   * @param number of the image, for its damage
   * @param stretch offset and length in bytes of the disk; it must be in `run`
   * @param take gets each block with its offset; the block is valid until `take` returns
   * @throws what {@link answerOf} understands
   */
  async read(
    source: StoredImage,
    number: number,
    run: DigestedRun,
    { offset, length }: { readonly offset: number; readonly length: number },
    take: (offset: number, bytes: Buffer) => void,
  ): Promise<void> {
    using opened = await this.#opened(source, number);
    const { clusterSize } = source.geometry;
    if (this.#buffer.length < clusterSize) this.#buffer = Buffer.allocUnsafeSlow(clusterSize);
    const block = this.#buffer.length - (this.#buffer.length % clusterSize);
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const stop = Math.min(end, at - (at % clusterSize) + block);
      const bytes = this.#buffer.subarray(0, stop - at);
      await opened.image.read(run, at, bytes, (damage) => {
        throw new Damaged({ damage, image: number });
      });
      take(at, bytes);
      at = stop;
    }
  }

  /** Closes the image at `path`, if it is open. */
  async close(path: string): Promise<void> {
    await this.#images.close(path);
  }

  async closeAll(): Promise<void> {
    await this.#images.closeAll();
  }

  /**
   * Opens an image. It could be opened before, so if it can't be opened now, it has changed, which is damage.
   */
  async #opened(source: StoredImage, number: number): Promise<{ readonly image: CheckedImage } & Disposable> {
    try {
      return await this.#images.get(source);
    } catch (error) {
      const message = damageIn(error);
      throw message === undefined ? error : new Damaged({ damage: { message }, image: number });
    }
  }
}

/** Ends the work on a question. */
class Damaged extends Error {
  readonly found: FoundDamage;

  constructor(found: FoundDamage) {
    super(found.damage.message);
    this.found = found;
  }
}

/**
 * An error as an answer, because errors lose their class and code between threads. Throws errors that are
 * neither ours nor the system's.
 */
export function answerOf(error: unknown): FoundDamage | { readonly failure: FileFailure } {
  if (error instanceof Damaged) return error.found;
  if (error instanceof BackupError) {
    return { failure: { code: error.code, message: error.message, details: error.details } };
  }
  if (!isOfSystem(error)) throw error;
  return { failure: { code: error.code, message: error.message, details: {} } };
}

/** Mistakes of a program have a code too, and Node's own errors: the system's have its number. */
function isOfSystem(error: unknown): error is Error & { readonly code: string } {
  const { code, errno } = error as NodeJS.ErrnoException;
  return error instanceof Error && typeof code === "string" && typeof errno === "number";
}
