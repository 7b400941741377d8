import type { ClusterRun, ImageWriter } from "../image/image.js";
import { RangeLanding } from "./range-landing.js";
import { type ReadRange, type Segment, type Slots, slotAt, storedRuns, storeInSlots } from "./segment.js";

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
  readonly #slots: Slots<ReadRange>;

  constructor(segment: Segment, writer: ImageWriter) {
    super(segment, writer.geometry);
    this.#segment = segment;
    this.#writer = writer;
    this.#slots = {
      clusterSize: writer.geometry.clusterSize,
      stored: new Uint8Array(segment.clusters),
      mayRepeat: true,
      write: (range, offset, bytes) => this.#write(range, offset, bytes),
    };
  }

  /** The segment's runs as they are stored, in guest order. */
  outcome(): ClusterRun[] {
    this.assertComplete();
    return storedRuns(this.#segment, this.#slots.stored, this.#writer);
  }

  protected store(range: ReadRange, offset: number, bytes: Uint8Array): void {
    storeInSlots(range, offset, bytes, this.#slots);
  }

  #write(range: ReadRange, offset: number, bytes: Uint8Array): void {
    const { clusterSize } = this.#slots;
    const cluster = Math.floor(offset / clusterSize);
    const rank = this.#segment.firstRank + slotAt(range, offset, clusterSize);
    this.#writer.writeNow(this.#writer.hostOffset(cluster, rank) + (offset % clusterSize), bytes);
  }
}
