import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "../digest/digest.js";
import { ALL_SUBCLUSTERS, type Geometry, type PlannedRun, slotsOf } from "../image/image.js";
import type { Compression } from "../qcow2/compress-cluster.js";
import type { Qcow2CompressedWriter } from "../qcow2/compressed-writer.js";
import type { ClusterResult } from "./cluster-job.js";
import type { CompressThreads } from "./compress-threads.js";

/** What is asked of a plan's segment: neighbouring runs, and how many clusters of theirs stand in its buffer. */
export interface SegmentRuns {
  readonly runs: readonly PlannedRun[];
  readonly clusters: number;
}

/** A run as it turned out, ready to be stored. */
export interface CompressedOutcome {
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

export interface CompressOptions {
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
  let slot = 0;
  let beyond = 0;
  for (const run of segment.runs) {
    const slots = slotsOf(run);
    if (slots === 0) continue;
    masks.fill(run.kind === "partial" ? run.dataMask : ALL_SUBCLUSTERS, slot, slot + slots);
    slot += slots;
    beyond = Math.max(0, (run.cluster + run.count) * clusterSize - virtualSize);
  }
  return { masks, length: segment.clusters * clusterSize - beyond };
}

function* outcomesOf(
  segment: SegmentRuns,
  { buffer, sizes, digests }: ClusterResult,
  { clusterSize, digestSize }: { readonly clusterSize: number; readonly digestSize: number },
): Generator<CompressedOutcome> {
  const kept = (slot: number, count: number): Omit<CompressedOutcome, "run"> => ({
    digests: digests.subarray(slot * digestSize, (slot + count) * digestSize),
    stored: Array.from(sizes.subarray(slot, slot + count), (size, i) =>
      Buffer.from(buffer, (slot + i) * clusterSize, size),
    ),
  });
  let slot = 0;
  for (const run of segment.runs) {
    if (slotsOf(run) === 0) yield { run, digests: NONE, stored: [] };
    else if (run.kind === "partial") {
      const zeroMask = (run.zeroMask | run.dataMask) >>> 0;
      if (sizes[slot] === 0) yield { run: { ...run, dataMask: 0, zeroMask }, digests: NONE, stored: [] };
      else yield { run, ...kept(slot, 1) };
    } else {
      for (let first = 0; first < run.count; ) {
        const zero = sizes[slot + first] === 0;
        let end = first + 1;
        while (end < run.count && (sizes[slot + end] === 0) === zero) end += 1;
        const [cluster, count] = [run.cluster + first, end - first];
        if (zero) yield { run: { kind: "zero", cluster, count }, digests: NONE, stored: [] };
        else yield { run: { kind: "data", cluster, count }, ...kept(slot + first, count) };
        first = end;
      }
    }
    slot += slotsOf(run);
  }
}
