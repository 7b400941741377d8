import { DamageError } from "../base/errors.js";

/** What is needed of a file in order to fill memory from it. */
interface Readable {
  readonly path: string;
  read(target: Uint8Array, position: number): Promise<number>;
}

/**
 * Fills all of `target` from `position`. Bytes at or after `end` become zeroes. All are offsets and lengths
 * in bytes.
 * @throws {DamageError} `E_IMAGE_TRUNCATED`: the file ends before `end`
 */
export async function fillFrom(
  file: Readable,
  target: Uint8Array,
  position: number,
  end: number,
): Promise<void> {
  const inside = Math.max(0, Math.min(target.length, end - position));
  const bytes = await file.read(target.subarray(0, inside), position);
  if (bytes < inside) {
    const message = `${file.path} ends at byte ${position + bytes}, in the middle of the stored data`;
    throw new DamageError("E_IMAGE_TRUNCATED", message, {
      details: { path: file.path, hostOffset: position, problem: "the image file ends before it" },
    });
  }
  target.fill(0, inside);
}
