/** A guest's disk as plain arrays: slow and obvious, the reference for everything else. */

import type { ServedExport, StatusExtent } from "../../src/nbd/server/index.js";
import { ALLOCATION, DIRTY } from "../../src/nbd/wire/constants.js";

const SECTOR = 512;
const HOLE = ALLOCATION.HOLE | ALLOCATION.ZERO;

export interface Shown {
  /**
   * A read that touches a clean byte fails, and there is no allocation, as on QEMU's snapshot-access exports.
   */
  readonly refusesClean: boolean;
}

/**
 * Can be written, zeroed, discarded and resized; one bitmap, `since`, marks what was touched. Like QEMU's
 * bitmap, it stays clean where the disk grows. Unlike QEMU's, it is dirty where the disk shrank and grew
 * again, so it is always right.
 */
export class ByteDisk {
  content: Buffer;
  /** One entry per sector: 0 (data), ZERO or HOLE. */
  #allocation: Uint8Array;
  /** One entry per byte of the disk, at its largest size so far: 1 if it was touched. */
  #touched: Uint8Array;
  #granularity = SECTOR;
  static readonly bitmap = "since";

  constructor(size: number) {
    this.content = Buffer.alloc(size);
    this.#allocation = new Uint8Array(sectors(size)).fill(HOLE);
    this.#touched = new Uint8Array(size);
  }

  write(offset: number, bytes: Uint8Array): void {
    this.content.set(bytes, offset);
    this.#allocation.fill(0, Math.floor(offset / SECTOR), sectors(offset + bytes.length));
    this.#touched.fill(1, offset, offset + bytes.length);
  }

  writeZeroes(offset: number, length: number): void {
    this.#clear(offset, length, ALLOCATION.ZERO);
  }

  discard(offset: number, length: number): void {
    this.#clear(offset, length, HOLE);
  }

  resize(size: number): void {
    const before = this.content.length;
    this.content = Buffer.concat([this.content], size);
    const allocation = new Uint8Array(sectors(size)).fill(HOLE);
    allocation.set(this.#allocation.subarray(0, sectors(Math.min(size, before))));
    this.#allocation = allocation;
    if (size < before) {
      // What appears there later differs from the last point.
      this.#touched.fill(1, size);
    } else if (size > this.#touched.length) {
      const touched = new Uint8Array(size);
      touched.set(this.#touched);
      this.#touched = touched;
    }
  }

  /** Marks all changes from now on, in blocks of `granularity` bytes. */
  startBitmap(granularity: number): void {
    this.#granularity = granularity;
    this.#touched = new Uint8Array(this.content.length);
  }

  /** The export of the current disk. */
  freeze({ refusesClean }: Shown): ServedExport {
    const content = Buffer.from(this.content);
    const unit = this.#granularity;
    const dirty = this.#dirty();
    const contexts = new Map([[`qemu:dirty-bitmap:${ByteDisk.bitmap}`, flagsOf(dirty, unit)]]);
    if (!refusesClean) contexts.set("base:allocation", flagsOf(this.#allocation.slice(), SECTOR));
    return {
      size: content.length,
      contexts,
      read: (offset, length) => {
        const blocks = dirty.subarray(Math.floor(offset / unit), Math.ceil((offset + length) / unit));
        if (refusesClean && blocks.includes(0)) throw new Error(`a byte at ${offset} is clean`);
        return Uint8Array.from(content.subarray(offset, offset + length));
      },
    };
  }

  /** The bytes that the bitmap marks on the current disk. */
  get dirtyBytes(): number {
    const { length } = this.content;
    const unit = this.#granularity;
    return this.#dirty().reduce(
      (sum, flag, block) => (flag === 0 ? sum : sum + Math.min(unit, length - block * unit)),
      0,
    );
  }

  #dirty(): Uint8Array {
    const unit = this.#granularity;
    const dirty = new Uint8Array(Math.ceil(this.content.length / unit));
    for (const block of dirty.keys()) {
      if (this.#touched.subarray(block * unit, (block + 1) * unit).includes(1)) dirty[block] = DIRTY;
    }
    return dirty;
  }

  #clear(offset: number, length: number, flags: number): void {
    const end = offset + length;
    this.content.fill(0, offset, end);
    const last = end === this.content.length ? sectors(end) : Math.floor(end / SECTOR);
    const first = sectors(offset);
    if (first < last) this.#allocation.fill(flags, first, last);
    this.#touched.fill(1, offset, end);
  }
}

function sectors(bytes: number): number {
  return Math.ceil(bytes / SECTOR);
}

function flagsOf(flags: Uint8Array, unit: number) {
  return function* (offset: number, length: number): Generator<Pick<StatusExtent, "length" | "flags">> {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const block = Math.floor(at / unit);
      const next = Math.min((block + 1) * unit, end);
      yield { length: next - at, flags: flags[block] ?? 0 };
      at = next;
    }
  };
}
