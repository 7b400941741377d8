import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "../digest/digest.js";
import { ALL_SUBCLUSTERS, type Geometry, type PlannedRun } from "../image/image.js";
import { slottedRuns, withoutZeroSlots } from "../image/slots.js";
import type { Compression } from "../qcow2/compress-cluster.js";
import type { Qcow2CompressedWriter } from "../qcow2/compressed-writer.js";
import type { ClusterResult } from "./cluster-job.js";
import type { CompressThreads } from "./compress-threads.js";

/** What is asked of a plan's segment: neighbouring runs, and how many clusters of theirs stand in its buffer. */
interface SegmentRuns {
  readonly runs: readonly PlannedRun[];
  readonly clusters: number;
}

/** A run as it turned out, ready to be stored. */
interface CompressedOutcome {
  readonly run: PlannedRun;
  /** One a stored cluster, as `digestsOf` makes them; empty where none are wanted. */
  readonly digests: Buffer;
  /** One a stored cluster, views of the segment's buffer: a whole cluster as it is, or a shorter stream. */
  readonly stored: readonly Buffer[];
}

export interface CompressedSegment {
  /** In guest order. */
  readonly outcomes: readonly CompressedOutcome[];
  /** The segment's buffer, the caller's again: to be used anew when the outcomes have been stored. */
  readonly buffer: ArrayBuffer;
}

interface CompressOptions {
  readonly digest?: DigestAlgorithm | undefined;
  readonly compression: Compression;
}

/**
 * Has a segment's clusters looked at, digested and compressed by `workers`. They stand in `buffer` in slot order, as
 * `Segment` draws them; what a partial cluster leaves undefined is zeroes. The buffer belongs to the
 * workers until the promise settles.
 *
 * @throws {BackupError} what happened to the workers
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

/** Stores outcomes, which come in guest order. In a complete image zeroes need not be said. */
export function storeOutcomes(
  outcomes: readonly CompressedOutcome[],
  writer: Qcow2CompressedWriter,
  { complete }: { readonly complete: boolean },
): void {
  const { clusterSize } = writer.geometry;
  for (const { run, stored } of outcomes) {
    switch (run.kind) {
      case "zero":
        if (!complete) writer.addZeroes(run.cluster, run.count);
        break;
      case "partial":
        writer.addPartial(run, stored[0] ?? NONE);
        break;
      case "data":
        for (const [i, bytes] of stored.entries()) {
          if (bytes.length < clusterSize) writer.addStream(run.cluster + i, bytes);
          else writer.addCluster(run.cluster + i, bytes);
        }
        break;
      default:
        run satisfies never;
    }
  }
}

const NONE = Buffer.alloc(0);

/** Which subclusters each slot has data in, and how many bytes of all slots the disk has. */
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
