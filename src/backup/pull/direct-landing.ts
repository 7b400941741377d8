import assert from "node:assert/strict";
import type { ClusterRun, ImageWriter } from "../image/image.js";
import type { Segment } from "./plan.js";
import type { Landing } from "./pull.js";
import { type ReadRange, rangeAt, readRangesOf } from "./segment.js";
import { storedRuns } from "./settle.js";

/** What zeroes are compared with; larger clusters are compared piece by piece. */
const ZEROES = Buffer.alloc(64 * 1024);

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
  readonly places: readonly ReadRange[];
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
    this.places = readRangesOf(segment, writer.geometry);
    this.#segment = segment;
    this.#writer = writer;
    this.#stored = new Uint8Array(segment.clusters);
  }

  data(offset: number, bytes: Uint8Array): void {
    this.firstByte ??= performance.now();
    const end = offset + bytes.length;
    let index = rangeAt(this.places, offset, this.#hint);
    for (let place = this.places[index]; place && place.offset < end; place = this.places[++index]) {
      const start = Math.max(offset, place.offset);
      const stop = Math.min(end, place.end);
      this.#landed += stop - start;
      this.#store(place, start, partOf(bytes, start - offset, stop - offset));
      this.#hint = index;
    }
  }

  zeroes(offset: number, length: number): void {
    for (let done = 0; done < length; done += ZEROES.length) {
      this.data(offset + done, ZEROES.subarray(0, Math.min(ZEROES.length, length - done)));
    }
  }

  /** All bytes have come: what the segment turned out to be, in guest order. */
  settle(): ClusterRun[] {
    const planned = this.places.reduce((sum, { offset, end }) => sum + end - offset, 0);
    if (this.#landed < planned) assert.fail(`${planned} bytes should have come, and ${this.#landed} have`);
    return storedRuns(this.#segment, this.#stored, this.#writer);
  }

  /** Writes a piece that lies within one place, neighbouring clusters at once. */
  #store(place: ReadRange, offset: number, bytes: Uint8Array): void {
    const { clusterSize } = this.#writer.geometry;
    const firstCluster = Math.floor(place.offset / clusterSize);
    let from = 0;
    for (let done = 0; done < bytes.length; ) {
      const cluster = Math.floor((offset + done) / clusterSize);
      const slot = place.slot + cluster - firstCluster;
      const next = Math.min(bytes.length, (cluster + 1) * clusterSize - offset);
      if (this.#stored[slot] === 1 || !isZero(bytes, done, next)) this.#stored[slot] = 1;
      else {
        this.#write(place, offset + from, partOf(bytes, from, done));
        from = next;
      }
      done = next;
    }
    this.#write(place, offset + from, partOf(bytes, from, bytes.length));
  }

  #write(place: ReadRange, offset: number, bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    const { clusterSize } = this.#writer.geometry;
    const cluster = Math.floor(offset / clusterSize);
    const slot = place.slot + cluster - Math.floor(place.offset / clusterSize);
    const hostOffset = this.#writer.hostOffset(cluster, this.#segment.firstRank + slot);
    this.#writer.writeNow(hostOffset + offset - cluster * clusterSize, bytes);
  }
}

/** Nearly always it is all of them, for which there is a view already. */
function partOf(bytes: Uint8Array, from: number, to: number): Uint8Array {
  return from === 0 && to === bytes.length ? bytes : bytes.subarray(from, to);
}

/** The first and the last byte settle most cases; the rest is compared at memory speed. */
function isZero(bytes: Uint8Array, from: number, to: number): boolean {
  if (bytes[from] !== 0 || bytes[to - 1] !== 0) return false;
  for (let at = from; at < to; at += ZEROES.length) {
    const stop = Math.min(at + ZEROES.length, to);
    if (ZEROES.compare(bytes, at, stop, 0, stop - at) !== 0) return false;
  }
  return true;
}
