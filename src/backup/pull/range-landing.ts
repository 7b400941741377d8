import assert from "node:assert/strict";
import { ZEROES } from "../base/zeroes.js";
import type { Geometry } from "../image/image.js";
import type { Landing } from "./pull.js";
import { partOf, type ReadRange, rangeAt, readRangesOf, type Segment } from "./segment.js";

/** Sorts arriving pieces into the ranges of a segment. Bytes between the ranges are dropped. */
export abstract class RangeLanding<T> implements Landing<T> {
  readonly ranges: readonly ReadRange[];
  firstByte: number | undefined;
  /** Bytes that have arrived; more than planned if a lost connection delivered some twice. */
  #arrived = 0;
  /** Index of the range to which the next piece probably belongs. */
  #hint = 0;

  constructor(segment: Segment, geometry: Geometry) {
    this.ranges = readRangesOf(segment, geometry);
  }

  abstract outcome(): T;

  /** Stores bytes that lie within one range; `offset` is that of the first one on the disk. */
  protected abstract store(range: ReadRange, offset: number, bytes: Uint8Array): void;

  data(offset: number, bytes: Uint8Array): void {
    this.firstByte ??= performance.now();
    const end = offset + bytes.length;
    let index = rangeAt(this.ranges, offset, this.#hint);
    for (let range = this.ranges[index]; range && range.offset < end; range = this.ranges[++index]) {
      const start = Math.max(offset, range.offset);
      const stop = Math.min(end, range.end);
      this.#arrived += stop - start;
      this.store(range, start, partOf(bytes, start - offset, stop - offset));
      this.#hint = index;
    }
  }

  zeroes(offset: number, length: number): void {
    for (let done = 0; done < length; done += ZEROES.length) {
      this.data(offset + done, ZEROES.subarray(0, Math.min(ZEROES.length, length - done)));
    }
  }

  /** Asserts that as many bytes have arrived as were planned. */
  protected assertComplete(): void {
    const planned = this.ranges.reduce((sum, { offset, end }) => sum + end - offset, 0);
    if (this.#arrived < planned) assert.fail(`expected ${planned} bytes, received ${this.#arrived}`);
  }
}
