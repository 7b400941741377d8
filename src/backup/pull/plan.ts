import { BackupError } from "../base/errors.js";
import type { Extent } from "../base/extent.js";
import type { PlannedRun } from "../image/image.js";
import { type Geometry, SUBCLUSTERS, slotsOf, subclustersOf } from "../image/image.js";
import type { Segment } from "./segment.js";

interface SegmentPlanOptions {
  readonly geometry: Geometry;
  /** Most bytes of clusters that a segment stores; less than a cluster counts as one cluster. */
  readonly segmentBytes: number;
  /**
   * The beginning of the first data run with at least so many bytes becomes a segment of exactly this size,
   * which one request reads. Undefined: no such segment.
   */
  readonly firstSegmentBytes?: number | undefined;
  /** Where the segments begin: what lies before is stored already, and counts only in the totals. */
  readonly from?: { readonly cluster: number; readonly rank: number } | undefined;
}

/** Zero runs store nothing, so only this limit bounds the memory of a segment that has many of them. */
const MAX_RUNS_IN_SEGMENT = 1024;

/**
 * The dirty bitmap is finer than a subcluster of the chosen cluster size, so the image can't express exactly
 * what has changed. The remedy is a smaller cluster size.
 */
export class GranularityError extends BackupError {
  override readonly name = "GranularityError";

  constructor(offset: number, subclusterSize: number) {
    super(
      "E_GRANULARITY",
      `the dirty bitmap changes inside the ${subclusterSize}-byte block at guest offset ${offset}`,
      { details: { guestOffset: offset, subclusterSize } },
    );
  }
}

/** Totals of what a plan has turned into segments so far. */
export interface PlanTotals {
  /** Number of extents that are not clean. Neighbours in the same state count as one. */
  extents: number;
  /** Guest bytes that are not clean. */
  definedBytes: number;
}

/**
 * Turns extents into segments. It is lazy: only the segment in the making is in memory.
 *
 * The extents must be gapless from byte 0 to the end of the disk. A cluster with clean and defined parts
 * becomes a `partial` run. A cluster that is defined throughout and has any data is read as a whole.
 *
 * @param totals updated along the way
 * @throws {GranularityError} a subcluster is partly clean
 */
export async function* plan(
  extents: AsyncIterable<readonly Extent[]>,
  options: SegmentPlanOptions,
  totals: PlanTotals = { extents: 0, definedBytes: 0 },
): AsyncGenerator<Segment> {
  const { clusterSize } = options.geometry;
  const perSegment = Math.max(1, Math.floor(options.segmentBytes / clusterSize));
  let wanted = Math.floor((options.firstSegmentBytes ?? Number.POSITIVE_INFINITY) / clusterSize);
  const cutter = new ClusterCutter(options.geometry);
  let runs: PlannedRun[] = [];
  let clusters = 0;
  const { cluster: begin, rank: firstRank } = options.from ?? { cluster: 0, rank: 0 };
  let rank = firstRank;
  let index = 0;
  const take = (): Segment => {
    const segment = { index: index++, runs, firstRank: rank, clusters };
    rank += clusters;
    runs = [];
    clusters = 0;
    return segment;
  };

  // The source may report one extent in several pieces.
  let before: Extent["state"] | undefined;
  for await (const batch of extents) {
    for (const extent of batch) {
      if (extent.state !== "clean") {
        if (extent.state !== before) totals.extents += 1;
        totals.definedBytes += extent.length;
      }
      before = extent.state;
      for (const run of cutter.cut(extent)) {
        if (run.cluster + run.count <= begin) continue;
        let rest = run.cluster < begin ? behind(run, begin) : run;
        if (rest.kind === "data" && rest.count >= wanted) {
          if (runs.length > 0) yield take();
          runs.push({ kind: "data", cluster: rest.cluster, count: wanted });
          clusters = wanted;
          yield { ...take(), mostRead: wanted * clusterSize };
          rest = { kind: "data", cluster: rest.cluster + wanted, count: rest.count - wanted };
          wanted = Number.POSITIVE_INFINITY;
          if (rest.count === 0) continue;
        }
        // Only data runs are divided: zero runs are not read.
        for (let free = perSegment - clusters; rest.kind === "data" && rest.count > free; free = perSegment) {
          runs.push({ kind: "data", cluster: rest.cluster, count: free });
          clusters += free;
          rest = { kind: "data", cluster: rest.cluster + free, count: rest.count - free };
          yield take();
        }
        runs.push(rest);
        clusters += slotsOf(rest);
        if (clusters === perSegment || runs.length >= MAX_RUNS_IN_SEGMENT) yield take();
      }
    }
  }
  if (runs.length > 0) yield take();
}

/** The part of a run from a cluster on. A run of one cluster is never cut. */
function behind(run: PlannedRun, cluster: number): PlannedRun {
  if (run.kind === "partial") return run;
  return { kind: run.kind, cluster, count: run.cluster + run.count - cluster };
}

/** Cuts extents at cluster boundaries. Whole clusters become one run, shared clusters are cut into pieces. */
class ClusterCutter {
  readonly #geometry: Geometry;
  /** Pieces of the cluster in which the last extent ended. */
  #pieces: Extent[] = [];
  /** The array that every call of `cut` returns. */
  readonly #runs: PlannedRun[] = [];

  constructor(geometry: Geometry) {
    this.#geometry = geometry;
  }

  /**
   * @param extent begins where the previous one ended
   * @returns the runs of the clusters that end in this extent; valid until the next call
   * @throws {GranularityError} a subcluster is partly clean
   */
  cut(extent: Extent): readonly PlannedRun[] {
    const { clusterSize, virtualSize } = this.#geometry;
    const runs = this.#runs;
    runs.length = 0;
    const end = extent.offset + extent.length;
    for (let offset = extent.offset; offset < end; ) {
      const cluster = Math.floor(offset / clusterSize);
      const whole = end === virtualSize ? Math.ceil(end / clusterSize) : Math.floor(end / clusterSize);
      if (offset === cluster * clusterSize && whole > cluster) {
        if (extent.state !== "clean") runs.push({ kind: extent.state, cluster, count: whole - cluster });
        offset = Math.min(whole * clusterSize, end);
        continue;
      }
      const stop = Math.min((cluster + 1) * clusterSize, end);
      this.#pieces.push({ offset, length: stop - offset, state: extent.state });
      offset = stop;
      if (stop % clusterSize === 0 || stop === virtualSize) {
        const run = clusterOfPieces(cluster, this.#pieces, clusterSize);
        if (run) runs.push(run);
        this.#pieces = [];
      }
    }
    return runs;
  }
}

/** Classifies one cluster that several extents share; undefined if all of it is clean. */
function clusterOfPieces(
  cluster: number,
  pieces: readonly Extent[],
  clusterSize: number,
): PlannedRun | undefined {
  const subclusterSize = clusterSize / SUBCLUSTERS;
  const masks = { clean: 0, zero: 0, data: 0 };
  for (const { offset, length, state } of pieces)
    masks[state] |= subclustersOf({ offset: offset - cluster * clusterSize, length }, clusterSize);
  if (masks.clean === 0) return { kind: masks.data === 0 ? "zero" : "data", cluster, count: 1 };
  const defined = masks.zero | masks.data;
  if (defined === 0) return undefined;
  const torn = masks.clean & defined;
  if (torn !== 0) {
    const subcluster = 31 - Math.clz32(torn & -torn);
    throw new GranularityError(cluster * clusterSize + subcluster * subclusterSize, subclusterSize);
  }
  const dataMask = masks.data >>> 0;
  return { kind: "partial", cluster, count: 1, dataMask, zeroMask: (masks.zero & ~masks.data) >>> 0 };
}
