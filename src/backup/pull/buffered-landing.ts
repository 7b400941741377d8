import { type Geometry, slotsOf } from "../image/image.js";
import type { Segment } from "./plan.js";
import type { Landing } from "./pull.js";
import { type ReadRange, rangeAt, readRangesOf } from "./segment.js";

/**
 * Collects a segment's bytes in a buffer, each cluster in its slot, as `Segment` draws them. What a partial cluster leaves
 * undefined is zeroes, whatever the buffer was used for before. When all have come, the buffer is handed on: to be
 * compressed, or written to a target that takes its time.
 */
export class BufferedLanding<T> implements Landing<Promise<T>> {
  readonly places: readonly ReadRange[];
  firstByte: number | undefined;
  readonly #buffer: ArrayBuffer;
  readonly #bytes: Uint8Array;
  readonly #clusterSize: number;
  readonly #handOn: (buffer: ArrayBuffer) => Promise<T>;
  /** Where the next piece probably goes. */
  #hint = 0;

  /**
   * @param buffer with room for the segment's clusters; belongs to the landing until `settle` hands it on
   * @param handOn takes the buffer over
   */
  constructor(
    segment: Segment,
    geometry: Geometry,
    buffer: ArrayBuffer,
    handOn: (buffer: ArrayBuffer) => Promise<T>,
  ) {
    this.places = readRangesOf(segment, geometry);
    this.#buffer = buffer;
    this.#bytes = new Uint8Array(buffer);
    this.#clusterSize = geometry.clusterSize;
    this.#handOn = handOn;
    this.#clearPartial(segment);
  }

  data(offset: number, bytes: Uint8Array): void {
    this.#eachPlace(offset, bytes.length, (at, start, stop) => {
      this.#bytes.set(bytes.subarray(start - offset, stop - offset), at);
    });
  }

  zeroes(offset: number, length: number): void {
    this.#eachPlace(offset, length, (at, start, stop) => {
      this.#bytes.fill(0, at, at + stop - start);
    });
  }

  settle(): Promise<T> {
    return this.#handOn(this.#buffer);
  }

  /** What of a piece is wanted, as guest offsets `start` to `stop`, and where in the buffer it goes. */
  #eachPlace(offset: number, length: number, put: (at: number, start: number, stop: number) => void): void {
    this.firstByte ??= performance.now();
    const end = offset + length;
    let index = rangeAt(this.places, offset, this.#hint);
    for (let place = this.places[index]; place && place.offset < end; place = this.places[++index]) {
      const start = Math.max(offset, place.offset);
      const stop = Math.min(end, place.end);
      const inSlot = place.offset % this.#clusterSize;
      // The clusters of a place have neighbouring slots.
      put(place.slot * this.#clusterSize + inSlot + start - place.offset, start, stop);
      this.#hint = index;
    }
  }

  #clearPartial(segment: Segment): void {
    let slot = 0;
    for (const run of segment.runs) {
      const slots = slotsOf(run);
      if (run.kind === "partial" && slots > 0) {
        this.#bytes.fill(0, slot * this.#clusterSize, (slot + 1) * this.#clusterSize);
      }
      slot += slots;
    }
  }
}
