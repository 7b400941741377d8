import { type ClusterRun, type ImageWriter, maskStretches, slotsOf } from "./image/image.js";
import type { PlannedRun, Segment } from "./plan.js";

/** A run as it turned out once its bytes were there. */
export interface SettledRun {
  readonly run: ClusterRun;
  /** What to store at the run's host offset: a view of the lane's buffer, ending at the end of the disk. Empty for zeroes. */
  readonly bytes: Buffer;
}

type Placement = Pick<ImageWriter, "geometry" | "hostOffset">;

/** Length of the zero buffer that clusters are compared with; larger clusters are compared piece by piece. */
const ZEROES = Buffer.alloc(64 * 1024);

/**
 * Looks at the clusters of a segment that was read into `buffer` and sorts out those that are all zeroes: they need
 * no place in the file. The slot that was set aside for such a cluster stays a hole.
 *
 *     planned    data 5 ×4             buffer  |xx|00|xx|xx|
 *     settled    data 5, zero 6, data 7 ×2
 */
export function* settle(segment: Segment, buffer: Buffer, placement: Placement): Generator<SettledRun> {
  const { clusterSize } = placement.geometry;
  let slot = 0;
  for (const run of segment.runs) {
    const slots = buffer.subarray(slot * clusterSize, (slot + slotsOf(run)) * clusterSize);
    yield* settleRun(run, slots, segment.firstRank + slot, placement);
    slot += slotsOf(run);
  }
}

function* settleRun(
  run: PlannedRun,
  slots: Buffer,
  rank: number,
  placement: Placement,
): Generator<SettledRun> {
  switch (run.kind) {
    case "zero":
      yield { run: { kind: "zero", cluster: run.cluster, count: run.count }, bytes: EMPTY };
      return;
    case "partial":
      yield settlePartial(run, slots, rank, placement);
      return;
    case "data":
      yield* settleData(run, slots, rank, placement);
      return;
    default:
      run satisfies never;
  }
}

function* settleData(
  run: Extract<PlannedRun, { kind: "data" | "zero" }>,
  slots: Buffer,
  rank: number,
  placement: Placement,
): Generator<SettledRun> {
  const { clusterSize, virtualSize } = placement.geometry;
  const bytes = slots.subarray(0, Math.min(slots.length, virtualSize - run.cluster * clusterSize));
  for (let first = 0; first < run.count; ) {
    const zero = isZero(bytes, first * clusterSize, clusterSize);
    let end = first + 1;
    while (end < run.count && isZero(bytes, end * clusterSize, clusterSize) === zero) end += 1;
    const cluster = run.cluster + first;
    const count = end - first;
    if (zero) yield { run: { kind: "zero", cluster, count }, bytes: EMPTY };
    else {
      const place = placement.hostOffset(cluster, rank + first);
      yield {
        run: { kind: "data", cluster, count, hostOffset: place },
        bytes: bytes.subarray(first * clusterSize, end * clusterSize),
      };
    }
    first = end;
  }
}

function settlePartial(
  run: Extract<PlannedRun, { kind: "partial" }>,
  slot: Buffer,
  rank: number,
  placement: Placement,
): SettledRun {
  const { clusterSize, virtualSize } = placement.geometry;
  if (run.dataMask === 0) return { run: { ...run, hostOffset: 0 }, bytes: EMPTY };
  // Subclusters that weren't read were zeroed before, so the whole slot tells of the data.
  if (isZero(slot, 0, clusterSize)) {
    const zeroMask = (run.zeroMask | run.dataMask) >>> 0;
    return { run: { ...run, dataMask: 0, zeroMask, hostOffset: 0 }, bytes: EMPTY };
  }
  const bytes = slot.subarray(0, Math.min(clusterSize, virtualSize - run.cluster * clusterSize));
  return { run: { ...run, hostOffset: placement.hostOffset(run.cluster, rank) }, bytes };
}

const EMPTY = Buffer.alloc(0);

function isZero(bytes: Buffer, offset: number, length: number): boolean {
  const end = Math.min(offset + length, bytes.length);
  for (let at = offset; at < end; at += ZEROES.length) {
    const stop = Math.min(at + ZEROES.length, end);
    if (ZEROES.compare(bytes, at, stop, 0, stop - at) !== 0) return false;
  }
  return true;
}

/** Settled runs that are neighbours in memory and in the file, as one write. */
export interface Write {
  readonly hostOffset: number;
  readonly bytes: Buffer;
}

/** Joins what one positional write can store; `buffer` is the one that the runs' bytes are views of. */
export function* adjacentWrites(settled: Iterable<SettledRun>, buffer: Buffer): Generator<Write> {
  let hostOffset = 0;
  let start = 0;
  let end = 0;
  for (const { run, bytes } of settled) {
    if (bytes.length === 0 || run.kind === "zero") continue;
    const at = bytes.byteOffset - buffer.byteOffset;
    if (at === end && end > start && run.hostOffset === hostOffset + (end - start)) {
      end += bytes.length;
      continue;
    }
    if (end > start) yield { hostOffset, bytes: buffer.subarray(start, end) };
    hostOffset = run.hostOffset;
    start = at;
    end = at + bytes.length;
  }
  if (end > start) yield { hostOffset, bytes: buffer.subarray(start, end) };
}

/** Where the data subclusters of a partial run lie, cut off at the end of the disk; offsets in the cluster. */
export function dataStretches(
  run: { readonly cluster: number; readonly dataMask: number },
  { clusterSize, virtualSize }: Placement["geometry"],
): { offset: number; length: number }[] {
  const inside = virtualSize - run.cluster * clusterSize;
  return maskStretches(run.dataMask, clusterSize)
    .filter((stretch) => stretch.offset < inside)
    .map(({ offset, length }) => ({ offset, length: Math.min(length, inside - offset) }));
}
