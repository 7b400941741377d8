import type { Geometry } from "../image/image.js";
import { slottedRuns } from "../image/slots.js";
import type { Landing } from "./pull.js";
import { type ReadRange, rangeAt, readRangesOf, type Segment, slotAt } from "./segment.js";

/**
 * Collects a segment's bytes in a buffer, each cluster in its slot, as the drawing at `Segment` shows. The
 * undefined parts of partial clusters are zeroes. When all bytes have arrived, the buffer is handed on, to be
 * compressed or to be written to a slower target.
 */
export class BufferedLanding<T> implements Landing<Promise<T>> {
  readonly ranges: readonly ReadRange[];
  firstByte: number | undefined;
  readonly #buffer: ArrayBuffer;
  readonly #bytes: Uint8Array;
  readonly #clusterSize: number;
  readonly #handOn: (buffer: ArrayBuffer) => Promise<T>;
  /** Index of the range to which the next piece probably belongs. */
  #hint = 0;

  /**
   * @param buffer large enough for the segment's clusters, with any content. It belongs to the landing until
   *   `outcome` hands it on
   * @param handOn becomes the owner of the buffer
   */
  constructor(
    segment: Segment,
    geometry: Geometry,
    buffer: ArrayBuffer,
    handOn: (buffer: ArrayBuffer) => Promise<T>,
  ) {
    this.ranges = readRangesOf(segment, geometry);
    this.#buffer = buffer;
    this.#bytes = new Uint8Array(buffer);
    this.#clusterSize = geometry.clusterSize;
    this.#handOn = handOn;
    this.#clearPartial(segment);
  }

  data(offset: number, bytes: Uint8Array): void {
    this.#eachPart(offset, bytes.length, (at, start, stop) => {
      this.#bytes.set(bytes.subarray(start - offset, stop - offset), at);
    });
  }

  zeroes(offset: number, length: number): void {
    this.#eachPart(offset, length, (at, start, stop) => {
      this.#bytes.fill(0, at, at + stop - start);
    });
  }

  outcome(): Promise<T> {
    return this.#handOn(this.#buffer);
  }

  /**
   * Calls `put` for each part of a piece that lies in a range: the guest offsets `start` to `stop`, which go
   * to byte `at` of the buffer.
   */
  #eachPart(offset: number, length: number, put: (at: number, start: number, stop: number) => void): void {
    this.firstByte ??= performance.now();
    const end = offset + length;
    let index = rangeAt(this.ranges, offset, this.#hint);
    for (let range = this.ranges[index]; range && range.offset < end; range = this.ranges[++index]) {
      const start = Math.max(offset, range.offset);
      const stop = Math.min(end, range.end);
      const slot = slotAt(range, start, this.#clusterSize);
      // The clusters of a range have neighbouring slots.
      put(slot * this.#clusterSize + (start % this.#clusterSize), start, stop);
      this.#hint = index;
    }
  }

  #clearPartial(segment: Segment): void {
    for (const { run, slot, slots } of slottedRuns(segment.runs)) {
      if (run.kind !== "partial") continue;
      this.#bytes.fill(0, slot * this.#clusterSize, (slot + slots) * this.#clusterSize);
    }
  }
}
