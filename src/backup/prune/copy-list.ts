import { DamageError } from "../base/errors.js";
import { isZero } from "../base/zeroes.js";
import type { ImageReader } from "../image/image.js";
import { type Guard, ImageFile } from "../image/image-file.js";
import { EventLoopTurn } from "../threads/event-loop-turn.js";

/** A copy from one image into another. Offsets are host offsets, in bytes. */
interface ListedCopy {
  /** Index of the source image in the chain, or {@link FROM_ZEROES}. */
  readonly layer: number;
  readonly from: number;
  readonly to: number;
  readonly length: number;
}

/** In place of an index: zeroes, which are written only where the image has other bytes. */
export const FROM_ZEROES = -1;

/** layer, from, to, length. */
const FIELDS = 4;
const RECORD_BYTES = FIELDS * 8;
const COPY_BYTES = 1024 * 1024;

/**
 * The list of copies that overwrite parts of an image in place. The copying can be repeated, from the
 * beginning or from any copy on: no kept point shows the bytes that are overwritten, only those that replace
 * them.
 *
 * The file has four 64-bit floating point numbers for each copy, little-endian: layer, from, to, length.
 */
export class CopyList {
  readonly #records: number[] = [];
  #last: { layer: number; from: number; to: number; length: number } | undefined;

  /** Adds a copy. One that continues the previous copy is joined with it. */
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

  /**
   * Writes the list to a new file.
   * @throws the file system's error: EEXIST if `path` exists
   */
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

/** Reads a list of copies, a block of the file at a time. */
async function* listedCopies(path: string): AsyncGenerator<ListedCopy> {
  const file = await ImageFile.open(path);
  try {
    const piece = Buffer.alloc(RECORD_BYTES * 2048);
    for (let position = 0; ; position += piece.length) {
      const bytes = await file.read(piece, position);
      if (bytes % RECORD_BYTES !== 0) throw damagedList(path, "it ends in the middle of a record");
      for (let at = 0; at < bytes; at += RECORD_BYTES) {
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
 * Makes the copies in the list at `listPath`, into the image at `imagePath`. After any error they can be
 * repeated.
 * @param sources the images of the chain, top first
 * @throws {DamageError} `E_PRUNE_JOURNAL`: the list is damaged; or a source file ends too early
 * @throws the file system's error, with `code`; the signal's reason; what the guard throws
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
      const source = sources[layer];
      if (!source && layer !== FROM_ZEROES) throw damagedList(listPath, `there is no image ${layer}`);
      for (let done = 0; done < length; done += COPY_BYTES) {
        await breather.yieldIfDue(options.signal);
        const bytes = buffer.subarray(0, Math.min(COPY_BYTES, length - done));
        if (source) await source.readHost(from + done, bytes);
        else {
          if (await isZeroThere(file, bytes, to + done)) continue;
          bytes.fill(0);
        }
        if (options.guard) await options.guard();
        file.writeNow(bytes, to + done);
      }
    }
    if (options.sync) await file.sync();
  } finally {
    await file.close();
  }
}

/**
 * Whether a stretch of the file reads as zeroes, or lies behind its end.
 * @param bytes as long as the stretch; overwritten with what is read
 */
async function isZeroThere(file: ImageFile, bytes: Buffer, position: number): Promise<boolean> {
  const length = await file.read(bytes, position);
  return isZero(bytes, 0, length);
}

function damagedList(path: string, what: string): DamageError {
  return new DamageError(
    "E_PRUNE_JOURNAL",
    `the list of copies ${path} can't be read: ${what}. See which points are sound: nbdpull verify`,
    {
      details: { path },
    },
  );
}
