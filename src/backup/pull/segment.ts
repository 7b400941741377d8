import type { Stretch } from "../../nbd/index.js";
import { isZero } from "../base/zeroes.js";
import {
  type ClusterRun,
  dataStretches,
  type Geometry,
  type ImageWriter,
  type PlannedRun,
} from "../image/image.js";
import { slottedRuns, withoutZeroSlots } from "../image/slots.js";

/**
 * The work that a lane takes at a time: neighbouring runs in guest order, with a bounded number of clusters
 * to be stored. In a buffer and in a packed image file, these clusters lie side by side, each in its slot:
 *
 *     guest    |data 5,6|  clean  |zero 9|data 10|   clean   |data 14|
 *     runs      data 5 ×2          zero 9 data 10             data 14
 *     slot     |0       |1       |2       |3       |
 *     rank      n        n+1      n+2      n+3
 */
export interface Segment {
  /** Position in the plan, from 0. Outcomes are put back into this order. */
  readonly index: number;
  readonly runs: readonly PlannedRun[];
  /** Number of clusters set aside for storing in all earlier segments. */
  readonly firstRank: number;
  /** Number of clusters set aside for storing in this segment. */
  readonly clusters: number;
  /** Most bytes of one request for this segment; default: the pull's limit. */
  readonly mostRead?: number | undefined;
}

/** A stretch of the guest to be read and stored, from byte `offset` up to byte `end`. */
export interface ReadRange {
  readonly offset: number;
  readonly end: number;
  /** The slot of the cluster at `offset`. The clusters after it have the following slots. */
  readonly slot: number;
}

/** The stretches of a segment to be read, in guest order. Those of a partial cluster share one slot. */
export function readRangesOf(segment: Segment, geometry: Geometry): ReadRange[] {
  const { clusterSize, virtualSize } = geometry;
  const ranges: ReadRange[] = [];
  for (const { run, slot } of slottedRuns(segment.runs)) {
    const offset = run.cluster * clusterSize;
    if (run.kind === "data") {
      ranges.push({ offset, end: Math.min(offset + run.count * clusterSize, virtualSize), slot });
    } else if (run.kind === "partial") {
      for (const stretch of dataStretches(run, geometry)) {
        const start = offset + stretch.offset;
        ranges.push({ offset: start, end: start + stretch.length, slot });
      }
    }
  }
  return ranges;
}

/** The slot of the cluster at guest offset `offset`, which lies in the range. */
export function slotAt(
  range: Pick<ReadRange, "offset" | "slot">,
  offset: number,
  clusterSize: number,
): number {
  return range.slot + Math.floor(offset / clusterSize) - Math.floor(range.offset / clusterSize);
}

/** What {@link storeInSlots} fills. */
export interface Slots<R> {
  readonly clusterSize: number;
  /** One byte for each slot, 1 if something is stored there; updated along the way. */
  readonly stored: Uint8Array;
  /**
   * Bytes may arrive twice, after a lost connection, and the later ones count: zeroes are written if their
   * cluster has something stored.
   */
  readonly mayRepeat: boolean;
  /** Stores `bytes` of the range, at least one; `offset` is the guest offset of the first. */
  write(range: R, offset: number, bytes: Uint8Array): void;
}

/**
 * Writes bytes of one range, neighbouring clusters in one call of `write`. Zeroes are left out, since the
 * file is new.
 *
 * @param offset guest offset of the first byte
 */
export function storeInSlots<R extends Pick<ReadRange, "offset" | "slot">>(
  range: R,
  offset: number,
  bytes: Uint8Array,
  slots: Slots<R>,
): void {
  const { clusterSize, stored, mayRepeat } = slots;
  let from = 0;
  for (let at = 0; at < bytes.length; ) {
    const slot = slotAt(range, offset + at, clusterSize);
    const next = Math.min(bytes.length, (Math.floor((offset + at) / clusterSize) + 1) * clusterSize - offset);
    if ((mayRepeat && stored[slot] === 1) || !isZero(bytes, at, next)) stored[slot] = 1;
    else {
      if (from < at) slots.write(range, offset + from, partOf(bytes, from, at));
      from = next;
    }
    at = next;
  }
  if (from < bytes.length) slots.write(range, offset + from, partOf(bytes, from, bytes.length));
}

/** Makes no new view if the part is the whole, as it nearly always is. */
export function partOf(bytes: Uint8Array, from: number, to: number): Uint8Array {
  return from === 0 && to === bytes.length ? bytes : bytes.subarray(from, to);
}

/**
 * The index of the first range that ends after `offset`, or the number of ranges if none does. Pieces mostly
 * arrive in order, so the range of the previous piece, at index `hint`, is tried first.
 */
export function rangeAt(ranges: readonly ReadRange[], offset: number, hint: number): number {
  const last = ranges[hint];
  if (last && last.offset <= offset && offset < last.end) return hint;
  let low = 0;
  let high = ranges.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((ranges[middle] as ReadRange).end > offset) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** How ranges become requests. Sizes in bytes. */
export interface RequestBounds {
  /** The largest gap between two ranges that one request reads too; 0 if clean bytes can't be read. */
  readonly readThrough: number;
  /** Most bytes of one request. */
  readonly mostRead: number;
}

/**
 * The requests for ranges. A gap of at most `readThrough` bytes is read too, because one larger request costs
 * less than two small ones; the landing drops its bytes. A range longer than `mostRead` is divided.
 *
 *     ranges    |xxxx| gap |xx|          large gap           |xxxxxxx|
 *     requests  |-------------|                              |-------|
 */
export function requestsOf(
  ranges: readonly ReadRange[],
  { readThrough, mostRead }: RequestBounds,
): Stretch[] {
  const requests: { offset: number; length: number }[] = [];
  let last: { offset: number; length: number } | undefined;
  for (const { offset, end } of ranges) {
    const joins =
      last !== undefined &&
      offset - (last.offset + last.length) <= readThrough &&
      end - last.offset <= mostRead;
    if (last !== undefined && joins) {
      last.length = end - last.offset;
    } else {
      let from = offset;
      for (; end - from > mostRead; from += mostRead) requests.push({ offset: from, length: mostRead });
      last = { offset: from, length: end - from };
      requests.push(last);
    }
  }
  return requests;
}

/**
 * The runs of a segment after its bytes were looked at, with their host offsets. Clusters of zeroes have
 * become zero runs, and a partial cluster without other bytes has only zero subclusters.
 *
 * @param stored one byte for each slot of the segment: 0 if it holds only zeroes, else 1
 */
export function storedRuns(
  segment: Segment,
  stored: Uint8Array,
  writer: Pick<ImageWriter, "hostOffset">,
): ClusterRun[] {
  const runs: ClusterRun[] = [];
  for (const { run, slot, slots } of withoutZeroSlots(segment.runs, (index) => stored[index] === 1)) {
    const { kind, cluster, count } = run;
    if (kind === "zero") {
      runs.push({ kind, cluster, count });
      continue;
    }
    const hostOffset = slots === 0 ? 0 : writer.hostOffset(cluster, segment.firstRank + slot);
    if (kind === "partial") runs.push({ ...run, hostOffset });
    else runs.push({ kind, cluster, count, hostOffset });
  }
  return runs;
}
