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
 * Stores a segment's bytes in the moment in which they come: each piece is written out of the buffer that it was
 * received in, at the place in the file that its cluster got by the plan, while it is still in the processor's cache.
 * No buffer ever waits for the rest of a cluster or of a request, so that memory does not grow with what is under way.
 *
 *     received    ...h|pppppppppppppppp|h|pppppppppp...     h header, p payload, 0 zeroes
 *     clusters        |  5   |  6   | 7    ..
 *     written          one write for neighbours; of 000000 nothing, since the file is new
 *
 * A cluster of which no piece was written is a zero cluster. A piece of zeroes is left out only where its cluster has
 * nothing stored yet: should a lost connection bring bytes twice, the later ones count.
 */
export class DirectLanding implements Landing<ClusterRun[]> {
  readonly ranges: readonly ReadRange[];
  firstByte: number | undefined;
  readonly #segment: Segment;
  readonly #writer: ImageWriter;
  /** 1 for each slot that something was written to. */
  readonly #stored: Uint8Array;
  /** Bytes that have come; more than there are places for where a lost connection brought some twice. */
  #landed = 0;
  /** Where the next piece probably goes. */
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

  /** All bytes have come: what the segment turned out to be, in guest order. */
  outcome(): ClusterRun[] {
    const planned = this.ranges.reduce((sum, { offset, end }) => sum + end - offset, 0);
    if (this.#landed < planned) assert.fail(`${planned} bytes should have come, and ${this.#landed} have`);
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

/** Nearly always it is all of them, for which there is a view already. */
function partOf(bytes: Uint8Array, from: number, to: number): Uint8Array {
  return from === 0 && to === bytes.length ? bytes : bytes.subarray(from, to);
}
