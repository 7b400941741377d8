import { DamageError } from "../base/errors.js";
import { isZero } from "../base/zeroes.js";
import type { ImageReader } from "../image/image.js";
import { clustersIn } from "../image/image.js";
import { type Guard, ImageFile } from "../image/image-file.js";
import { RawReader } from "../image/raw-reader.js";
import { Qcow2Reader } from "../qcow2/reader.js";
import type { DiskManifest } from "../repository/manifest.js";
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
   * @returns how many copies it has
   * @throws the file system's error: EEXIST if `path` exists
   */
  async save(path: string, { sync }: { readonly sync: boolean }): Promise<number> {
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
    return this.#records.length / FIELDS;
  }

  #push(): void {
    if (this.#last) this.#records.push(this.#last.layer, this.#last.from, this.#last.to, this.#last.length);
    this.#last = undefined;
  }
}

/** Reads a list of copies, a block of the file at a time. */
async function* listedCopies(file: ImageFile): AsyncGenerator<ListedCopy> {
  const piece = Buffer.alloc(RECORD_BYTES * 2048);
  for (let position = 0; ; position += piece.length) {
    const bytes = await file.read(piece, position);
    if (bytes % RECORD_BYTES !== 0) throw damagedList(file, "it ends in the middle of a record");
    for (let at = 0; at < bytes; at += RECORD_BYTES) {
      const [layer = 0, from = 0, to = 0, length = 0] = [0, 8, 16, 24].map((field) =>
        piece.readDoubleLE(at + field),
      );
      yield { layer, from, to, length };
    }
    if (bytes < piece.length) return;
  }
}

/** An image that copies come from. */
export interface CopySource {
  readonly reader: ImageReader;
  /** Host offsets of its data are smaller. */
  readonly end: number;
}

/**
 * Makes the copies in the list at `listPath`, into the image at `imagePath`. After any error they can be
 * repeated. The whole list is checked before the first byte is written, because others may have written it.
 * @param sources the images of the chain, top first
 * @throws {DamageError} `E_PRUNE_JOURNAL`: the list is torn, or no prune has written it for these images;
 *   `E_IMAGE_FILE`: the list or the image is not a regular file; or a source file ends too early
 * @throws the file system's error, with `code`; the signal's reason; what the guard throws
 */
export async function applyCopyList(
  listPath: string,
  imagePath: string,
  sources: readonly CopySource[],
  options: {
    /** How many copies the list must have; undefined: not known. */
    readonly copies: number | undefined;
    /** The length that the image has, or may get by the copies, in bytes; default: the one it has. */
    readonly imageBytes?: number | undefined;
    readonly sync: boolean;
    readonly signal?: AbortSignal | undefined;
    readonly guard?: Guard | undefined;
  },
): Promise<void> {
  const list = await ImageFile.open(listPath);
  try {
    const file = await ImageFile.openForWriting(imagePath);
    try {
      const end = Math.max(options.imageBytes ?? 0, await file.size());
      const bounds = { sources, end, copies: options.copies };
      for await (const _ of checkedCopies(list, bounds));
      await copyAll(list, file, bounds, options);
      if (options.sync) await file.sync();
    } finally {
      await file.close();
    }
  } finally {
    await list.close();
  }
}

/** What a list of copies must fit. */
interface ListBounds {
  readonly sources: readonly CopySource[];
  /** Of the image that is written to, in bytes. */
  readonly end: number;
  readonly copies: number | undefined;
}

/**
 * @throws {DamageError} a copy leaves its image, or there are more bytes or fewer copies than there can be
 */
async function* checkedCopies(list: ImageFile, bounds: ListBounds): AsyncGenerator<ListedCopy> {
  let copies = 0;
  let bytes = 0;
  for await (const copy of listedCopies(list)) {
    const { layer, from, to, length } = copy;
    const source = layer === FROM_ZEROES ? { end: Number.MAX_SAFE_INTEGER } : bounds.sources[layer];
    if (!source) throw damagedList(list, `there is no image ${layer}`);
    const isInside = length > 0 && isRange(from, length, source.end) && isRange(to, length, bounds.end);
    if (!isInside) {
      throw damagedList(list, `copy ${copies} of ${length} bytes from ${from} to ${to} does not fit`);
    }
    copies += 1;
    bytes += length;
    // No byte of an image is written twice.
    if (bytes > bounds.end) throw damagedList(list, "it copies more bytes than the image has");
    yield copy;
  }
  if (bounds.copies !== undefined && copies !== bounds.copies) {
    throw damagedList(list, `it has ${copies} copies of ${bounds.copies}`);
  }
}

function isRange(offset: number, length: number, end: number): boolean {
  return (
    Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && offset + length <= end
  );
}

async function copyAll(
  list: ImageFile,
  file: ImageFile,
  bounds: ListBounds,
  options: { readonly signal?: AbortSignal | undefined; readonly guard?: Guard | undefined },
): Promise<void> {
  const buffer = Buffer.allocUnsafe(COPY_BYTES);
  const breather = new EventLoopTurn();
  for await (const { layer, from, to, length } of checkedCopies(list, bounds)) {
    const source = bounds.sources[layer]?.reader;
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
}

/**
 * Whether a stretch of the file reads as zeroes, or lies behind its end.
 * @param bytes as long as the stretch; overwritten with what is read
 */
async function isZeroThere(file: ImageFile, bytes: Buffer, position: number): Promise<boolean> {
  const length = await file.read(bytes, position);
  return isZero(bytes, 0, length);
}

function damagedList({ path }: ImageFile, what: string): DamageError {
  const message = `the list of copies ${path} is not what a prune wrote: ${what}. Nothing of it was copied. See which points are sound: nbdpull verify`;
  return new DamageError("E_PRUNE_JOURNAL", message, { details: { path } });
}

/** An image that copies come from, and the end of the host offsets that its reader knows. */
export async function copySourceOf(path: string, disk: DiskManifest): Promise<CopySource> {
  const geometry = { virtualSize: disk.virtualSize, clusterSize: disk.clusterSize };
  const whole = clustersIn(geometry) * disk.clusterSize;
  if (disk.format === "raw") {
    return { reader: await RawReader.open(path, { geometry, blocking: true }), end: whole };
  }
  const reader = await Qcow2Reader.open(path, { blocking: true });
  // Compressed clusters have offsets behind the end of the file.
  return { reader, end: reader.fileEnd + whole };
}
