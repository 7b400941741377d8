import { isZero } from "../base/zeroes.js";
import type { ImageReader } from "../image/image.js";
import { type Guard, ImageFile } from "../image/image-file.js";
import { EventLoopTurn } from "../threads/event-loop-turn.js";

/** Bytes of one image that are to be copied over those of another; offsets are host offsets. */
interface ListedCopy {
  /** Place in the chain of the image that they come from; or {@link FROM_ZEROES}. */
  readonly layer: number;
  readonly from: number;
  readonly to: number;
  readonly length: number;
}

/** In place of an image: nothing but zeroes, which are not written where there are some already. */
export const FROM_ZEROES = -1;

/** layer, from, to, length. */
const FIELDS = 4;
const RECORD_BYTES = FIELDS * 8;
const COPY_BYTES = 1024 * 1024;

/**
 * What is to be copied into an image in place. Doing it again, from the beginning or from anywhere, does no harm:
 * the bytes that are replaced are visible nowhere but through those that replace them.
 *
 * The file: for each copy four 64-bit floating point numbers, little-endian.
 */
export class CopyList {
  readonly #records: number[] = [];
  #last: { layer: number; from: number; to: number; length: number } | undefined;

  add(next: ListedCopy): void {
    const last = this.#last;
    if (
      last &&
      last.layer === next.layer &&
      last.from + last.length === next.from &&
      last.to + last.length === next.to
    ) {
      last.length += next.length;
      return;
    }
    this.#push();
    this.#last = { ...next };
  }

  /** Makes the file, which must not exist. */
  async save(path: string, { sync }: { readonly sync: boolean }): Promise<void> {
    this.#push();
    const file = await ImageFile.create(path);
    try {
      const bytes = Buffer.alloc(this.#records.length * 8);
      for (const [i, value] of this.#records.entries()) bytes.writeDoubleLE(value, i * 8);
      await file.write(bytes, 0);
      if (sync) await file.sync();
    } finally {
      await file.close();
    }
  }

  #push(): void {
    if (this.#last) this.#records.push(this.#last.layer, this.#last.from, this.#last.to, this.#last.length);
    this.#last = undefined;
  }
}

/** The copies that a file lists, read piece by piece. */
async function* listedCopies(path: string): AsyncGenerator<ListedCopy> {
  const file = await ImageFile.open(path);
  try {
    const piece = Buffer.alloc(RECORD_BYTES * 2048);
    for (let position = 0; ; position += piece.length) {
      const bytes = await file.read(piece, position);
      for (let at = 0; at + RECORD_BYTES <= bytes; at += RECORD_BYTES) {
        const [layer = 0, from = 0, to = 0, length = 0] = [0, 8, 16, 24].map((field) =>
          piece.readDoubleLE(at + field),
        );
        yield { layer, from, to, length };
      }
      if (bytes < piece.length) return;
    }
  } finally {
    await file.close();
  }
}

/**
 * Copies what the file at `listPath` says into the image at `imagePath`.
 * @param sources the images of the chain
 * @throws the file system's error, with `code`: the copying can be repeated then
 */
export async function applyCopyList(
  listPath: string,
  imagePath: string,
  sources: readonly ImageReader[],
  options: {
    readonly sync: boolean;
    readonly signal?: AbortSignal | undefined;
    readonly guard?: Guard | undefined;
  },
): Promise<void> {
  const file = await ImageFile.openForWriting(imagePath);
  try {
    const buffer = Buffer.allocUnsafe(COPY_BYTES);
    const breather = new EventLoopTurn();
    for await (const { layer, from, to, length } of listedCopies(listPath)) {
      for (let done = 0; done < length; done += COPY_BYTES) {
        await breather.yieldIfDue(options.signal);
        const bytes = buffer.subarray(0, Math.min(COPY_BYTES, length - done));
        if (layer === FROM_ZEROES) {
          if (await isZeroThere(file, bytes, to + done)) continue;
          bytes.fill(0);
        } else await sources[layer]?.readHost(from + done, bytes);
        if (options.guard) await options.guard();
        file.writeNow(bytes, to + done);
      }
    }
    if (options.sync) await file.sync();
  } finally {
    await file.close();
  }
}

/** @param bytes are overwritten with what is there */
async function isZeroThere(file: ImageFile, bytes: Buffer, position: number): Promise<boolean> {
  const length = await file.read(bytes, position);
  return isZero(bytes, 0, length);
}
