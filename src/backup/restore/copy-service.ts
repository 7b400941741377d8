import { BackupError } from "../base/errors.js";
import type { DigestedRun } from "../chain/checked-image.js";
import type { StoredImage } from "../chain/open-images.js";
import { answerOf, type FileFailure, type FoundDamage, ProvenBlocks } from "../chain/proven-blocks.js";
import { DIGEST_ALGORITHMS } from "../digest/algorithms.js";
import { type ClusterRun, slotsOf } from "../image/image.js";
import { ImageFile } from "../image/image-file.js";
import { type Slots, storeInSlots } from "../pull/segment.js";
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

/** Pieces to be copied. */
export interface PiecesQuestion {
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

/** No more pieces come for the target at this path: it is closed. */
interface EndQuestion {
  readonly end: string;
}

export type CopyQuestion = PiecesQuestion | EndQuestion;

export type CopyAnswer =
  | { readonly ended: true }
  /** One byte for each slot: 0 if its bytes are all zeroes and nothing was written, else 1. */
  | { readonly stored: Uint8Array<ArrayBuffer> }
  /** Damaged clusters were not written, but parts of the segment before them were. */
  | FoundDamage
  /** About the target or an image. */
  | { readonly failure: FileFailure };

/** Path of an image about which no more questions come, so that it can be closed. */
export type ForgottenFile = string;

/**
 * Copies bytes from images and compares them with their digests.
 */
export class CopyService implements ThreadService<CopyQuestion, CopyAnswer, ForgottenFile> {
  readonly #images = new ProvenBlocks();
  /** By path. */
  readonly #targets = new Map<string, Promise<ImageFile>>();

  async answer(question: CopyQuestion): Promise<CopyAnswer> {
    try {
      if (!("end" in question)) return await this.#copyAll(question);
      await this.#end(question.end);
      return { ended: true };
    } catch (error) {
      return answerOf(error);
    }
  }

  async close(): Promise<void> {
    for (const path of [...this.#targets.keys()]) await this.#end(path).catch(() => undefined);
    await this.#images.closeAll();
  }

  async onNotice(path: ForgottenFile): Promise<void> {
    await this.#images.close(path);
  }

  /** Network file systems may tell a failed write only to whoever wrote, at the latest when he closes. */
  async #end(path: string): Promise<void> {
    const target = this.#targets.get(path);
    this.#targets.delete(path);
    await (await target)?.close();
  }

  async #copyAll({ images: sources, pieces, digests, target }: PiecesQuestion): Promise<CopyAnswer> {
    const stored = new Uint8Array(target.slots);
    const file = await this.#targetAt(target.path);
    const slots: Slots<CopiedPiece> = {
      clusterSize: target.clusterSize,
      stored,
      mayRepeat: false,
      write: (piece, offset, bytes) => file.writeNow(bytes, piece.to + offset - piece.offset),
    };
    let rest = Buffer.from(digests.buffer);
    for (const piece of pieces) {
      const source = sources[piece.image] as StoredImage;
      const { algorithm } = source;
      const size = algorithm === undefined ? 0 : DIGEST_ALGORITHMS[algorithm].bytes;
      const expected = rest.subarray(0, slotsOf(piece.run) * size);
      rest = rest.subarray(expected.length);
      const run: DigestedRun = { ...piece.run, digests: algorithm && expected };
      await this.#images.read(source, piece.image, run, piece, (offset, bytes) => {
        storeInSlots(piece, offset, bytes, slots);
      });
    }
    return { stored };
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
