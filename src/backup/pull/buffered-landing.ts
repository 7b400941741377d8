import type { Geometry } from "../image/image.js";
import { slottedRuns } from "../image/slots.js";
import { RangeLanding } from "./range-landing.js";
import { type ReadRange, type Segment, slotAt } from "./segment.js";

/**
 * Collects a segment's bytes in a buffer, each cluster in its slot, as the drawing at `Segment` shows. The
 * undefined parts of partial clusters are zeroes. When all bytes have arrived, the buffer is handed on, to be
 * compressed or to be written to a slower target.
 */
export class BufferedLanding<T> extends RangeLanding<Promise<T>> {
  readonly #buffer: ArrayBuffer;
  readonly #bytes: Uint8Array;
  readonly #clusterSize: number;
  readonly #handOn: (buffer: ArrayBuffer) => Promise<T>;

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
    super(segment, geometry);
    this.#buffer = buffer;
    this.#bytes = new Uint8Array(buffer);
    this.#clusterSize = geometry.clusterSize;
    this.#handOn = handOn;
    for (const { run, slot, slots } of slottedRuns(segment.runs)) {
      if (run.kind !== "partial") continue;
      this.#bytes.fill(0, slot * this.#clusterSize, (slot + slots) * this.#clusterSize);
    }
  }

  outcome(): Promise<T> {
    // Otherwise the buffer has bytes of another segment.
    this.assertComplete();
    return this.#handOn(this.#buffer);
  }

  protected store(range: ReadRange, offset: number, bytes: Uint8Array): void {
    // The clusters of a range have neighbouring slots.
    const slot = slotAt(range, offset, this.#clusterSize);
    this.#bytes.set(bytes, slot * this.#clusterSize + (offset % this.#clusterSize));
  }
}
