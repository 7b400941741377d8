import { type Damage, damageIn } from "../base/damage.js";
import { BackupError } from "../base/errors.js";
import type { CheckedImage, DigestedRun } from "../chain/checked-image.js";
import { OpenImages, type StoredImage } from "../chain/open-images.js";
import { DIGEST_ALGORITHMS } from "../digest/algorithms.js";
import { type ClusterRun, slotsOf } from "../image/image.js";
import { ImageFile } from "../image/image-file.js";
import { storeInSlots } from "../pull/segment.js";
import type { ThreadService } from "../threads/thread-pool.js";

/** Bytes of an image that are to be copied. Offsets and lengths in bytes. */
export interface CopiedPiece {
  /** Index of the image among those of the question. */
  readonly image: number;
  /** The clusters that the piece touches. Digests are of whole clusters. */
  readonly run: Exclude<ClusterRun, { kind: "zero" }>;
  /** Guest offset of the piece. */
  readonly offset: number;
  readonly length: number;
  /** Host offset in the target file. */
  readonly to: number;
  /** The slot of the target in which the piece begins. The clusters after it have the following slots. */
  readonly slot: number;
}

export interface CopyQuestion {
  readonly images: readonly StoredImage[];
  readonly pieces: readonly CopiedPiece[];
  /**
   * Expected digests of the clusters of all pieces' runs, in order; images without digests have none here.
   */
  readonly digests: Uint8Array<ArrayBuffer>;
  readonly target: CopyTarget;
}

/** A new file, which reads as zeroes where nothing was written. */
interface CopyTarget {
  readonly path: string;
  readonly clusterSize: number;
  /** Number of clusters that pieces go to. */
  readonly slots: number;
}

export type CopyAnswer =
  /** One byte for each slot: 0 if its bytes are all zeroes and nothing was written, else 1. */
  | { readonly stored: Uint8Array<ArrayBuffer> }
  /**
   * The first damage, and the index of its image. Damaged clusters were not written, but parts of the segment
   * before them were.
   */
  | { readonly damage: Damage; readonly image: number }
  /** An error of the file system, about the target or an image. */
  | { readonly failure: CopyFailure };

export interface CopyFailure {
  readonly code: string;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

/** Path of an image or target about which no more questions come, so that it can be closed. */
export type ForgottenFile = string;

/** Bytes copied at a time: they stay in the processor's cache between reading, digesting and writing. */
const BLOCK = 256 * 1024;

/**
 * Copies bytes from images and compares them with their digests. One buffer is enough, since questions come
 * one at a time.
 */
export class CopyService implements ThreadService<CopyQuestion, CopyAnswer, ForgottenFile> {
  readonly #images = new OpenImages();
  /** By path. */
  readonly #targets = new Map<string, Promise<ImageFile>>();
  #buffer = Buffer.allocUnsafeSlow(BLOCK);

  async answer(question: CopyQuestion): Promise<CopyAnswer> {
    try {
      return await this.#copyAll(question);
    } catch (error) {
      return answerOf(error);
    }
  }

  async close(): Promise<void> {
    for (const path of [...this.#targets.keys()]) await this.onNotice(path);
    await this.#images.closeAll();
  }

  async onNotice(path: ForgottenFile): Promise<void> {
    await this.#images.close(path);
    const target = this.#targets.get(path);
    this.#targets.delete(path);
    await target?.then((file) => file.close()).catch(() => undefined);
  }

  async #copyAll({ images: sources, pieces, digests, target }: CopyQuestion): Promise<CopyAnswer> {
    const stored = new Uint8Array(target.slots);
    const file = await this.#targetAt(target.path);
    let rest = Buffer.from(digests.buffer);
    for (const piece of pieces) {
      const source = sources[piece.image] as StoredImage;
      const { algorithm } = source;
      const size = algorithm === undefined ? 0 : DIGEST_ALGORITHMS[algorithm].bytes;
      const expected = rest.subarray(0, slotsOf(piece.run) * size);
      rest = rest.subarray(expected.length);
      const run: DigestedRun = { ...piece.run, digests: algorithm && expected };
      using opened = await this.#opened(source, piece.image);
      const { clusterSize } = source.geometry;
      await this.#copyPiece(opened.image, run, piece, clusterSize, (offset, bytes) => {
        storeInSlots(
          piece,
          offset,
          bytes,
          { clusterSize: target.clusterSize, stored, mayRepeat: false },
          (from, to) => {
            file.writeNow(bytes.subarray(from, to), piece.to + offset - piece.offset + from);
          },
        );
      });
    }
    return { stored };
  }

  /**
   * Opens an image. It could be opened before, so if it can't be opened now, it has changed, which is damage.
   */
  async #opened(source: StoredImage, number: number): ReturnType<OpenImages["get"]> {
    try {
      return await this.#images.get(source);
    } catch (error) {
      const message = damageIn(error);
      throw message === undefined ? error : new Damaged({ message }, number);
    }
  }

  /** Reads a piece block by block. All blocks but the last end at a cluster boundary. */
  async #copyPiece(
    image: CheckedImage,
    run: DigestedRun,
    { offset, length, image: number }: CopiedPiece,
    clusterSize: number,
    take: (offset: number, bytes: Buffer) => void,
  ): Promise<void> {
    if (this.#buffer.length < clusterSize) this.#buffer = Buffer.allocUnsafeSlow(clusterSize);
    const block = this.#buffer.length - (this.#buffer.length % clusterSize);
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const stop = Math.min(end, at - (at % clusterSize) + block);
      const bytes = this.#buffer.subarray(0, stop - at);
      await image.read(run, at, bytes, (damage) => {
        throw new Damaged(damage, number);
      });
      take(at, bytes);
      at = stop;
    }
  }

  #targetAt(path: string): Promise<ImageFile> {
    const known = this.#targets.get(path);
    if (known !== undefined) return known;
    const opening = ImageFile.openForWriting(path).catch((cause: NodeJS.ErrnoException) => {
      const message = `${path} can't be written: ${cause.message}`;
      throw new BackupError(cause.code ?? "E_COPY_THREAD", message, { cause, details: { path } });
    });
    this.#targets.set(path, opening);
    return opening;
  }
}

/** Ends the work on a question. */
class Damaged extends Error {
  readonly damage: Damage;
  readonly image: number;

  constructor(damage: Damage, image: number) {
    super(damage.message);
    this.damage = damage;
    this.image = image;
  }
}

/** An error as an answer, because errors lose their class and code between threads. Throws unknown errors. */
function answerOf(error: unknown): CopyAnswer {
  if (error instanceof Damaged) return { damage: error.damage, image: error.image };
  if (!(error instanceof BackupError)) throw error;
  return { failure: { code: error.code, message: error.message, details: error.details } };
}
