import type { ClusterRun, ImageWriter } from "../image/image.js";
import { partOf, RangeLanding } from "./range-landing.js";
import { type ReadRange, type Segment, slotAt, storedRuns, storeInSlots } from "./segment.js";

/**
 * Writes a segment's bytes to the file when they arrive. Each piece is written from the buffer in which it
 * was received, while it is still in the processor's cache, to the host offset that its cluster has by the
 * plan. No buffer waits for the rest of a cluster or a request, so memory does not grow with the bytes in
 * flight.
 *
 *     received    ...h|pppppppppppppp000000|h|pppppp...     h header, p payload, 0 zeroes
 *     clusters        |  5   |  6   |  7   | |  8   |...
 *     written         |pppppppppppppp|       |pppppp...     one write for neighbours, none for zeroes
 *
 * A cluster of which no piece was written is a zero cluster, since the file is new.
 */
export class DirectLanding extends RangeLanding<ClusterRun[]> {
  readonly #segment: Segment;
  readonly #writer: ImageWriter;
  /** One byte for each slot, 1 if something was written there. */
  readonly #stored: Uint8Array;

  constructor(segment: Segment, writer: ImageWriter) {
    super(segment, writer.geometry);
    this.#segment = segment;
    this.#writer = writer;
    this.#stored = new Uint8Array(segment.clusters);
  }

  /** The segment's runs as they are stored, in guest order. */
  outcome(): ClusterRun[] {
    this.assertComplete();
    return storedRuns(this.#segment, this.#stored, this.#writer);
  }

  protected store(range: ReadRange, offset: number, bytes: Uint8Array): void {
    const { clusterSize } = this.#writer.geometry;
    const slots = { clusterSize, stored: this.#stored, mayRepeat: true };
    storeInSlots(range, offset, bytes, slots, (from, to) => {
      const cluster = Math.floor((offset + from) / clusterSize);
      const rank = this.#segment.firstRank + slotAt(range, offset + from, clusterSize);
      const hostOffset = this.#writer.hostOffset(cluster, rank) + offset + from - cluster * clusterSize;
      this.#writer.writeNow(hostOffset, partOf(bytes, from, to));
    });
  }
}
