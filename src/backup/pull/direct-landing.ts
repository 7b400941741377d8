import assert from "node:assert/strict";
import { ZEROES } from "../base/zeroes.js";
import type { ClusterRun, ImageWriter } from "../image/image.js";
import type { Landing } from "./pull.js";
import {
  type ReadRange,
  rangeAt,
  readRangesOf,
  type Segment,
  slotAt,
  storedRuns,
  storeInSlots,
} from "./segment.js";

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
 * A cluster of which no piece was written is a zero cluster, since the file is new. Zeroes are left out only
 * if nothing is stored in their cluster yet: after a lost connection bytes may arrive twice, and the later
 * ones count.
 */
export class DirectLanding implements Landing<ClusterRun[]> {
  readonly ranges: readonly ReadRange[];
  firstByte: number | undefined;
  readonly #segment: Segment;
  readonly #writer: ImageWriter;
  /** One byte for each slot, 1 if something was written there. */
  readonly #stored: Uint8Array;
  /** Bytes that have arrived; more than planned if a lost connection delivered some twice. */
  #landed = 0;
  /** Index of the range to which the next piece probably belongs. */
  #hint = 0;

  constructor(segment: Segment, writer: ImageWriter) {
    this.ranges = readRangesOf(segment, writer.geometry);
    this.#segment = segment;
    this.#writer = writer;
    this.#stored = new Uint8Array(segment.clusters);
  }

  data(offset: number, bytes: Uint8Array): void {
    this.firstByte ??= performance.now();
    const end = offset + bytes.length;
    let index = rangeAt(this.ranges, offset, this.#hint);
    for (let range = this.ranges[index]; range && range.offset < end; range = this.ranges[++index]) {
      const start = Math.max(offset, range.offset);
      const stop = Math.min(end, range.end);
      this.#landed += stop - start;
      this.#store(range, start, partOf(bytes, start - offset, stop - offset));
      this.#hint = index;
    }
  }

  zeroes(offset: number, length: number): void {
    for (let done = 0; done < length; done += ZEROES.length) {
      this.data(offset + done, ZEROES.subarray(0, Math.min(ZEROES.length, length - done)));
    }
  }

  /** The segment's runs as they are stored, in guest order. */
  outcome(): ClusterRun[] {
    const planned = this.ranges.reduce((sum, { offset, end }) => sum + end - offset, 0);
    if (this.#landed < planned) assert.fail(`expected ${planned} bytes, received ${this.#landed}`);
    return storedRuns(this.#segment, this.#stored, this.#writer);
  }

  #store(range: ReadRange, offset: number, bytes: Uint8Array): void {
    const { clusterSize } = this.#writer.geometry;
    storeInSlots(range, offset, bytes, { clusterSize, stored: this.#stored }, (from, to) => {
      const cluster = Math.floor((offset + from) / clusterSize);
      const rank = this.#segment.firstRank + slotAt(range, offset + from, clusterSize);
      const hostOffset = this.#writer.hostOffset(cluster, rank) + offset + from - cluster * clusterSize;
      this.#writer.writeNow(hostOffset, partOf(bytes, from, to));
    });
  }
}

/** Makes no new view if the part is the whole, as it nearly always is. */
function partOf(bytes: Uint8Array, from: number, to: number): Uint8Array {
  return from === 0 && to === bytes.length ? bytes : bytes.subarray(from, to);
}
