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
 * Applies the patch file to the image. Applying it again does no harm.
 * @throws {DamageError} the file ends before its last entry
 * @throws the file system's error, with `code`
 */
export async function applyPatch(
  patchPath: string,
  imagePath: string,
  { sync, guard }: { readonly sync: boolean; readonly guard: Guard },
): Promise<void> {
  const patch = await ImageFile.open(patchPath);
  try {
    const image = await ImageFile.openForWriting(imagePath, guard);
    try {
      const head = Buffer.alloc(HEAD_BYTES);
      const buffer = Buffer.allocUnsafe(COPY_BYTES);
      for (let at = 0; ; ) {
        await readAll(patch, head, at);
        at += HEAD_BYTES;
        const offset = head.readDoubleLE(0);
        const length = head.readDoubleLE(8);
        if (length === 0) {
          await image.truncate(offset);
          break;
        }
        for (let done = 0; done < length; done += COPY_BYTES) {
          const bytes = buffer.subarray(0, Math.min(COPY_BYTES, length - done));
          await readAll(patch, bytes, at + done);
          await image.write(bytes, offset + done);
        }
        at += length;
      }
      if (sync) await image.sync();
    } finally {
      await image.close();
    }
  } finally {
    await patch.close();
  }
}

async function readAll(file: ImageFile, target: Buffer, position: number): Promise<void> {
  if ((await file.read(target, position)) === target.length) return;
  const { path } = file;
  throw new DamageError("E_PRUNE_JOURNAL", `the patch ${path} ends before its last entry`, {
    details: { path },
  });
}
