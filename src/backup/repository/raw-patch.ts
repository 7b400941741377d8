import { DamageError } from "../base/errors.js";
import { type Guard, ImageFile } from "../image/image-file.js";

/**
 * A patch file holds bytes to write into a raw image, and the image's new length. Each stretch is its offset
 * in the image and its length (64-bit floating point numbers, little-endian), then the bytes. The last entry
 * is the image's length, and 0.
 */
const HEAD_BYTES = 16;
const COPY_BYTES = 1024 * 1024;

export class PatchWriter {
  readonly #file: ImageFile;
  #end = 0;

  private constructor(file: ImageFile) {
    this.#file = file;
  }

  /** @throws the file system's error: EEXIST if `path` exists */
  static async create(path: string): Promise<PatchWriter> {
    return new PatchWriter(await ImageFile.create(path));
  }

  add(offset: number, bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#append(headOf(offset, bytes.length));
    this.#append(bytes);
  }

  async finish(imageBytes: number, { sync }: { readonly sync: boolean }): Promise<void> {
    this.#append(headOf(imageBytes, 0));
    if (sync) await this.#file.sync();
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  #append(bytes: Uint8Array): void {
    this.#file.writeNow(bytes, this.#end);
    this.#end += bytes.length;
  }
}

function headOf(offset: number, length: number): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeDoubleLE(offset, 0);
  head.writeDoubleLE(length, 8);
  return head;
}

/**
 * Applies the patch file to the image. Applying it again does no harm. The whole patch is checked before the
 * first byte is written, because others may have written it.
 * @param imageBytes the length that the image must have at the end
 * @throws {DamageError} `E_PRUNE_JOURNAL`: the patch is not what {@link PatchWriter} writes for such an
 *   image; `E_IMAGE_FILE`: one of them is not a regular file. The image has not changed.
 * @throws the file system's error, with `code`
 */
export async function applyPatch(
  patchPath: string,
  imagePath: string,
  imageBytes: number,
  { sync, guard }: { readonly sync: boolean; readonly guard: Guard },
): Promise<void> {
  const patch = await ImageFile.open(patchPath);
  try {
    for await (const _ of stretchesOf(patch, imageBytes));
    const image = await ImageFile.openForWriting(imagePath, guard);
    try {
      const buffer = Buffer.allocUnsafe(COPY_BYTES);
      for await (const { offset, length, at } of stretchesOf(patch, imageBytes)) {
        for (let done = 0; done < length; done += COPY_BYTES) {
          const bytes = buffer.subarray(0, Math.min(COPY_BYTES, length - done));
          await readAll(patch, bytes, at + done);
          await image.write(bytes, offset + done);
        }
      }
      await image.truncate(imageBytes);
      if (sync) await image.sync();
    } finally {
      await image.close();
    }
  } finally {
    await patch.close();
  }
}

interface PatchStretch {
  /** In the image, in bytes. */
  readonly offset: number;
  readonly length: number;
  /** Where its bytes begin in the patch. */
  readonly at: number;
}

/** @throws {DamageError} a stretch leaves the image or overlaps another, or bytes follow the last entry */
async function* stretchesOf(patch: ImageFile, imageBytes: number): AsyncGenerator<PatchStretch> {
  const size = await patch.size();
  const head = Buffer.alloc(HEAD_BYTES);
  let end = 0;
  for (let at = 0; ; ) {
    await readAll(patch, head, at);
    at += HEAD_BYTES;
    const offset = head.readDoubleLE(0);
    const length = head.readDoubleLE(8);
    if (length === 0) {
      if (offset !== imageBytes)
        throw damagedPatch(patch, `is for an image of ${offset} bytes, not ${imageBytes}`);
      if (at !== size) throw damagedPatch(patch, "goes on behind its last entry");
      return;
    }
    const isInside = isCount(offset) && isCount(length) && offset >= end && offset + length <= imageBytes;
    if (!isInside || at + length > size) {
      throw damagedPatch(patch, `has an entry of ${length} bytes at ${offset}, which do not fit`);
    }
    yield { offset, length, at };
    end = offset + length;
    at += length;
  }
}

function isCount(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

async function readAll(file: ImageFile, target: Buffer, position: number): Promise<void> {
  if ((await file.read(target, position)) === target.length) return;
  throw damagedPatch(file, "ends before its last entry");
}

function damagedPatch({ path }: ImageFile, what: string): DamageError {
  return new DamageError("E_PRUNE_JOURNAL", `the patch ${path} ${what}`, { details: { path } });
}
