import { ALLOCATION, DIRTY } from "../wire/constants.js";
import type { DescribeExtents, ServedExport, StatusExtent } from "./export.js";

/** Sizes in bytes. */
export interface MemoryDiskOptions {
  readonly size: number;
  /** Unit of allocation, and of `base:allocation`; default 65,536 (as in qcow2). */
  readonly pageSize?: number;
}

const DATA = 0;
const ZERO = ALLOCATION.ZERO;
const HOLE = ALLOCATION.HOLE | ALLOCATION.ZERO;

interface DirtyBitmap {
  /** Bytes per block. */
  readonly granularity: number;
  /** DIRTY or 0 for each block. */
  readonly blocks: Uint8Array;
}

/**
 * A sparse disk in memory that acts as the disk of a running guest: it can be written to, tracks changes in
 * dirty bitmaps, and can be frozen at a point in time while writes continue.
 *
 *     page         |0       |1       |2       |3       |
 *     content      |abcdefgh|        |        |ab......|
 *     allocation    DATA     HOLE     ZERO     DATA
 *
 * A frozen point shares all pages with the disk. A shared page is replaced by a copy instead of being written
 * to, so freezing costs a list of pages, and each page written afterwards costs one copy.
 */
export class MemoryDisk {
  readonly size: number;
  readonly pageSize: number;
  /** The pages that are DATA. */
  readonly #content = new Map<number, Uint8Array>();
  /** DATA, ZERO or HOLE for each page. */
  readonly #allocation: Uint8Array;
  readonly #bitmaps = new Map<string, DirtyBitmap>();
  /** Pages that no frozen point shares. */
  #unshared = new Set<number>();

  constructor({ size, pageSize = 64 * 1024 }: MemoryDiskOptions) {
    if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`a disk can't have ${size} bytes`);
    if (!Number.isSafeInteger(pageSize) || pageSize < 1)
      throw new RangeError(`a page can't have ${pageSize} bytes`);
    this.size = size;
    this.pageSize = pageSize;
    this.#allocation = new Uint8Array(Math.ceil(size / pageSize)).fill(HOLE);
  }

  read(offset: number, length: number): Uint8Array {
    this.#checkRange(offset, length);
    return readPages(this.#content, this.pageSize, offset, length);
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#checkRange(offset, bytes.length);
    for (const { page, from, to, at } of pageParts(this.pageSize, offset, bytes.length)) {
      this.#writable(page).set(bytes.subarray(at, at + to - from), from);
    }
    this.#markDirty(offset, bytes.length);
  }

  /** Whole pages become ZERO; a partly covered page is overwritten with zeroes in that part. */
  writeZeroes(offset: number, length: number): void {
    this.#clear(offset, length, ZERO);
  }

  /** Like `writeZeroes`, but whole pages become HOLE. */
  discard(offset: number, length: number): void {
    this.#clear(offset, length, HOLE);
  }

  /**
   * Tracks all changes from now on, in blocks of `granularity` bytes. Resets an existing bitmap of that name.
   */
  startBitmap(name: string, granularity = 64 * 1024): void {
    if (!Number.isSafeInteger(granularity) || granularity < 1) {
      throw new RangeError(`a bitmap can't have a granularity of ${granularity} bytes`);
    }
    this.#bitmaps.set(name, { granularity, blocks: new Uint8Array(Math.ceil(this.size / granularity)) });
  }

  /**
   * An immutable copy of the disk as it is now, with the contexts `base:allocation` and, for each bitmap,
   * `qemu:dirty-bitmap:NAME`. The bitmaps of the disk keep recording; for an increment from this point, start
   * a new one right after.
   */
  freeze(): ServedExport {
    const { size, pageSize } = this;
    const content = new Map(this.#content);
    this.#unshared = new Set();

    const contexts = new Map([["base:allocation", describeFlags(this.#allocation.slice(), pageSize)]]);
    for (const [name, { granularity, blocks }] of this.#bitmaps) {
      contexts.set(`qemu:dirty-bitmap:${name}`, describeFlags(blocks.slice(), granularity));
    }
    return {
      size,
      contexts,
      read: (offset, length) => readPages(content, pageSize, offset, length),
    };
  }

  /** The page's content, which may be changed in place. */
  #writable(page: number): Uint8Array {
    const current = this.#content.get(page);
    if (current !== undefined && this.#unshared.has(page)) return current;
    const own = new Uint8Array(this.pageSize);
    if (current !== undefined) own.set(current);
    this.#content.set(page, own);
    this.#unshared.add(page);
    this.#allocation[page] = DATA;
    return own;
  }

  #clear(offset: number, length: number, flags: number): void {
    this.#checkRange(offset, length);
    for (const { page, from, to } of pageParts(this.pageSize, offset, length)) {
      const pageEnd = Math.min(this.pageSize, this.size - page * this.pageSize);
      if (from === 0 && to === pageEnd) {
        this.#content.delete(page);
        this.#unshared.delete(page);
        this.#allocation[page] = flags;
      } else if (this.#allocation[page] === DATA) {
        this.#writable(page).fill(0, from, to);
      }
    }
    this.#markDirty(offset, length);
  }

  #markDirty(offset: number, length: number): void {
    if (length === 0) return;
    for (const { granularity, blocks } of this.#bitmaps.values()) {
      blocks.fill(DIRTY, Math.floor(offset / granularity), Math.ceil((offset + length) / granularity));
    }
  }

  #checkRange(offset: number, length: number): void {
    const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
    if (!whole || offset < 0 || length < 0 || offset + length > this.size) {
      throw new RangeError(`${length} bytes at ${offset} are not inside a disk of ${this.size} bytes`);
    }
  }
}

/** The part of a range in one page: `from`..`to` inside the page, `at` inside the range. */
interface PagePart {
  readonly page: number;
  readonly from: number;
  readonly to: number;
  readonly at: number;
}

function* pageParts(pageSize: number, offset: number, length: number): Generator<PagePart> {
  for (let at = 0; at < length; ) {
    const page = Math.floor((offset + at) / pageSize);
    const from = offset + at - page * pageSize;
    const to = Math.min(pageSize, from + length - at);
    yield { page, from, to, at };
    at += to - from;
  }
}

function readPages(
  content: ReadonlyMap<number, Uint8Array>,
  pageSize: number,
  offset: number,
  length: number,
): Uint8Array {
  const bytes = new Uint8Array(length);
  for (const { page, from, to, at } of pageParts(pageSize, offset, length)) {
    const data = content.get(page);
    if (data !== undefined) bytes.set(data.subarray(from, to), at);
  }
  return bytes;
}

/** Describes extents by one flag byte for each `unit` bytes of the disk. */
function describeFlags(flags: Uint8Array, unit: number): DescribeExtents {
  return function* (offset: number, length: number): Generator<StatusExtent> {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const first = Math.floor(at / unit);
      let next = first + 1;
      while (next * unit < end && flags[next] === flags[first]) next++;
      const until = Math.min(next * unit, end);
      yield { length: until - at, flags: flags[first] ?? 0 };
      at = until;
    }
  };
}
