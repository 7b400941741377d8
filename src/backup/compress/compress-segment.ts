/**
 * Compression of a disk's clusters on their way into a qcow2 image. Threads look for zeroes, compute digests
 * and compress; this room sends them the clusters and stores the results.
 *
 * Read this file first: it compresses a segment and stores the outcome. Then read cluster-job.ts (what a
 * thread does with the clusters), compress-threads.ts (the threads) and compress-worker.ts (their script).
 * The compression of one cluster is in qcow2/compress-cluster.ts, the writer in qcow2/compressed-writer.ts.
 *
 * Nothing here reads a source or decides the order of segments: the pull room does that. Nothing here knows
 * NBD, libvirt or repositories.
 */

import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "../digest/algorithms.js";
import { ALL_SUBCLUSTERS, type Geometry, type PlannedRun } from "../image/image.js";
import { slottedRuns, withoutZeroSlots } from "../image/slots.js";
import type { Compression } from "../qcow2/compress-cluster.js";
import type { ClusterResult } from "./cluster-job.js";
import type { CompressThreads } from "./compress-threads.js";

/** What is needed of a plan's segment: its runs, in guest order, and the number of clusters in its buffer. */
interface SegmentRuns {
  readonly runs: readonly PlannedRun[];
  readonly clusters: number;
}

/** A run after its bytes were looked at, ready to be stored. Clusters of zeroes have become zero runs. */
export interface CompressedOutcome {
  readonly run: PlannedRun;
  /** One for each stored cluster, as `digestClusters` makes them; empty if no digests are wanted. */
  readonly digests: Buffer;
  /**
   * One for each stored cluster: the cluster itself, or a shorter compressed stream. They are views of the
   * segment's buffer.
   */
  readonly stored: readonly Buffer[];
}

export interface CompressedSegment {
  /** In guest order. */
  readonly outcomes: readonly CompressedOutcome[];
  /** The segment's buffer, which belongs to the caller again. To be reused after the outcomes are stored. */
  readonly buffer: ArrayBuffer;
}

interface CompressOptions {
  /** Undefined: no digests are computed. */
  readonly digest?: DigestAlgorithm | undefined;
  /** Undefined: clusters are stored as they are. */
  readonly compression: Compression | undefined;
}

/**
 * Sends a segment's clusters to `workers`, which look for zeroes, compute digests and compress.
 *
 * @param buffer the clusters in slot order, as `Segment` in pull/segment.ts draws them. Subclusters without
 *   data must be zeroes in a partial cluster. The buffer is moved to a thread, and the result brings it back;
 *   after a failure it is lost.
 * @throws {BackupError} `E_CLUSTER_WORKER`: the clusters could not be digested or compressed, a thread ended,
 *   or the threads were closed
 */
export async function compressSegment(
  segment: SegmentRuns,
  buffer: ArrayBuffer,
  geometry: Geometry,
  workers: CompressThreads,
  options: CompressOptions,
): Promise<CompressedSegment> {
  if (segment.clusters === 0) {
    return { outcomes: segment.runs.map((run) => ({ run, digests: NONE, stored: [] })), buffer };
  }
  const { clusterSize } = geometry;
  const { masks, length } = slotsOfSegment(segment, geometry);
  const result = await workers.run({ buffer, clusterSize, masks, length, ...options });
  const digestSize = options.digest === undefined ? 0 : DIGEST_ALGORITHMS[options.digest].bytes;
  return {
    outcomes: Array.from(outcomesOf(segment, result, { clusterSize, digestSize })),
    buffer: result.buffer,
  };
}

export const NONE = Buffer.alloc(0);

/** For each slot the mask of its data subclusters; and how many bytes of all slots are inside the disk. */
function slotsOfSegment(
  segment: SegmentRuns,
  { clusterSize, virtualSize }: Geometry,
): { masks: Uint32Array<ArrayBuffer>; length: number } {
  const masks = new Uint32Array(segment.clusters);
  let beyond = 0;
  for (const { run, slot, slots } of slottedRuns(segment.runs)) {
    if (slots === 0) continue;
    masks.fill(run.kind === "partial" ? run.dataMask : ALL_SUBCLUSTERS, slot, slot + slots);
    beyond = Math.max(0, (run.cluster + run.count) * clusterSize - virtualSize);
  }
  return { masks, length: segment.clusters * clusterSize - beyond };
}

function* outcomesOf(
  segment: SegmentRuns,
  { buffer, sizes, digests }: ClusterResult,
  { clusterSize, digestSize }: { readonly clusterSize: number; readonly digestSize: number },
): Generator<CompressedOutcome> {
  for (const { run, slot, slots } of withoutZeroSlots(segment.runs, (index) => sizes[index] !== 0)) {
    yield {
      run,
      digests: digests.subarray(slot * digestSize, (slot + slots) * digestSize),
      stored: Array.from(sizes.subarray(slot, slot + slots), (size, i) =>
        Buffer.from(buffer, (slot + i) * clusterSize, size),
      ),
    };
  }
}
