import type { Stretch } from "../nbd/index.js";
import { type Geometry, slotsOf } from "./image/image.js";
import type { Segment } from "./plan.js";
import { dataStretches } from "./settle.js";

/** A stretch of the guest that has to be read and stored. Offsets and lengths in bytes. */
export interface Place {
  readonly offset: number;
  readonly end: number;
  /** Of the cluster that `offset` is in: which of the segment's slots it gets; the following clusters follow. */
  readonly slot: number;
}

/** The stretches of a segment that have to be read, in guest order. Those of a partial cluster share one slot. */
export function placesOf(segment: Segment, geometry: Geometry): Place[] {
  const { clusterSize, virtualSize } = geometry;
  const places: Place[] = [];
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
 * What to ask for. Where clean bytes may be read as well, gaps of no more than `readThrough` bytes are read along: one
 * larger request costs less than two small ones. Whoever gets them leaves them out.
 *
 *     places    |xxxx| gap |xx|          large gap           |xxxxxxx|
 *     reads     |-------------|                              |-------|
 */
export function readsOf(places: readonly Place[], readThrough: number): Stretch[] {
  const reads: { offset: number; length: number }[] = [];
  let last: { offset: number; length: number } | undefined;
  for (const { offset, end } of places) {
    if (last !== undefined && offset - (last.offset + last.length) <= readThrough) {
      last.length = end - last.offset;
    } else {
      last = { offset, length: end - offset };
      reads.push(last);
    }
  }
  return reads;
}
