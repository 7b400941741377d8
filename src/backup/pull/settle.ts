import { type ClusterRun, type ImageWriter, type PlannedRun, slotsOf } from "../image/image.js";
import type { Segment } from "./plan.js";

type Placement = Pick<ImageWriter, "geometry" | "hostOffset">;

/**
 * What became of a segment, once its bytes were looked at: clusters that turned out to be all zeroes need no place in
 * the file, and the slot that was set aside for such a cluster stays a hole.
 *
 *     planned    data 5 ×4             stored  |xx|  |xx|xx|
 *     settled    data 5, zero 6, data 7 ×2
 *
 * @param stored for each of the segment's slots, 0 where it holds nothing but zeroes
 */
export function storedRuns(segment: Segment, stored: Uint8Array, placement: Placement): ClusterRun[] {
  const settled: ClusterRun[] = [];
  let slot = 0;
  for (const run of segment.runs) {
    const rank = segment.firstRank + slot;
    const slots = stored.subarray(slot, slot + slotsOf(run));
    slot += slots.length;
    switch (run.kind) {
      case "zero":
        settled.push({ kind: "zero", cluster: run.cluster, count: run.count });
        break;
      case "partial":
        settled.push(settlePartial(run, slots[0] === 1, placement.hostOffset(run.cluster, rank)));
        break;
      case "data":
        settleData(run, slots, rank, placement, settled);
        break;
      default:
        run satisfies never;
    }
  }
  return settled;
}

function settleData(
  run: Extract<PlannedRun, { kind: "data" | "zero" }>,
  stored: Uint8Array,
  rank: number,
  placement: Placement,
  settled: ClusterRun[],
): void {
  for (let first = 0; first < run.count; ) {
    const state = stored[first];
    let end = first + 1;
    while (end < run.count && stored[end] === state) end += 1;
    const cluster = run.cluster + first;
    const count = end - first;
    if (state === 0) settled.push({ kind: "zero", cluster, count });
    else
      settled.push({
        kind: "data",
        cluster,
        count,
        hostOffset: placement.hostOffset(cluster, rank + first),
      });
    first = end;
  }
}

function settlePartial(
  run: Extract<PlannedRun, { kind: "partial" }>,
  stored: boolean,
  hostOffset: number,
): ClusterRun {
  if (stored) return { ...run, hostOffset };
  return { ...run, dataMask: 0, zeroMask: (run.zeroMask | run.dataMask) >>> 0, hostOffset: 0 };
}
