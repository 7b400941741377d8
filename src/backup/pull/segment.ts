import type { Stretch } from "../../nbd/index.js";
import { dataStretches, type Geometry, slotsOf } from "../image/image.js";
import type { Segment } from "./plan.js";

/** A stretch of the guest that has to be read and stored. Offsets and lengths in bytes. */
export interface ReadRange {
  readonly offset: number;
  readonly end: number;
  /** Of the cluster that `offset` is in: which of the segment's slots it gets; the following clusters follow. */
  readonly slot: number;
}

/** The stretches of a segment that have to be read, in guest order. Those of a partial cluster share one slot. */
export function readRangesOf(segment: Segment, geometry: Geometry): ReadRange[] {
  const { clusterSize, virtualSize } = geometry;
  const places: ReadRange[] = [];
  let slot = 0;
  for (const run of segment.runs) {
    const offset = run.cluster * clusterSize;
    if (run.kind === "data") {
      places.push({ offset, end: Math.min(offset + run.count * clusterSize, virtualSize), slot });
    } else if (run.kind === "partial") {
      for (const stretch of dataStretches(run, geometry)) {
        const start = offset + stretch.offset;
        places.push({ offset: start, end: start + stretch.length, slot });
      }
    }
    slot += slotsOf(run);
  }
  return places;
}

/**
 * Which is the first place that goes on beyond `offset`; their number where none does. Pieces of a request come one after
 * the other, requests in any order: so the place of the piece before, `hint`, is tried first.
 */
export function rangeAt(places: readonly ReadRange[], offset: number, hint: number): number {
  const last = places[hint];
  if (last && last.offset <= offset && offset < last.end) return hint;
  let low = 0;
  let high = places.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((places[middle] as ReadRange).end > offset) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** How places become requests; bytes. */
export interface RequestLimits {
  /** Between two places that are rather read along than left out; 0 where clean bytes can't be read. */
  readonly readThrough: number;
  /** By one request, at the most. */
  readonly mostRead: number;
}

/**
 * What to ask for. Where clean bytes may be read as well, gaps of no more than `readThrough` bytes are read along: one
 * larger request costs less than two small ones. Whoever gets them leaves them out. What is longer than `mostRead` is divided.
 *
 *     places    |xxxx| gap |xx|          large gap           |xxxxxxx|
 *     reads     |-------------|                              |-------|
 */
export function requestsOf(
  places: readonly ReadRange[],
  { readThrough, mostRead }: RequestLimits,
): Stretch[] {
  const reads: { offset: number; length: number }[] = [];
  let last: { offset: number; length: number } | undefined;
  for (const { offset, end } of places) {
    const joins =
      last !== undefined &&
      offset - (last.offset + last.length) <= readThrough &&
      end - last.offset <= mostRead;
    if (last !== undefined && joins) {
      last.length = end - last.offset;
    } else {
      let from = offset;
      for (; end - from > mostRead; from += mostRead) reads.push({ offset: from, length: mostRead });
      last = { offset: from, length: end - from };
      reads.push(last);
    }
  }
  return reads;
}
