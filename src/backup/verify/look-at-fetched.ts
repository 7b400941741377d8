import { damageIn, type OnDamage } from "../base/damage.js";
import type { CheckedImage, DigestedRun } from "../chain/checked-image.js";
import { mergedRequests, REQUEST_LIMITS } from "../chain/merged-requests.js";
import {
  clustersOf,
  type FetchedRange,
  type FetchedRun,
  fetchInto,
  storedRanges,
} from "../chain/stored-ranges.js";
import { type Geometry, slotsOf } from "../image/image.js";
import type { ReadableFile } from "../image/readable-file.js";
import { type Looking, lookAtStored } from "./look-at-run.js";

/**
 * Reads the runs of an image that is elsewhere by few requests, and compares them with their digests.
 * @param runs in guest order
 * @param file the image's, whose reads are requests
 * @throws what concerns neither the image nor its medium
 */
export async function lookAtFetched(
  image: CheckedImage,
  file: ReadableFile,
  runs: readonly DigestedRun[],
  looking: Looking,
  note: OnDamage,
): Promise<void> {
  const { geometry, buffer } = looking;
  const { clusterSize, virtualSize } = geometry;
  let round: FetchedRange[] = [];
  let bytes = 0;
  const look = async (): Promise<void> => {
    await lookAtRanges(image, file, round, looking, note);
    round = [];
    bytes = 0;
  };
  for (const run of runs) {
    const offset = run.cluster * clusterSize;
    const length = Math.min(run.count * clusterSize, virtualSize - offset);
    if (run.kind === "zero") {
      await look();
      await image.expectZeroes(offset, length, note);
      continue;
    }
    if (run.kind === "partial") await image.expectZeroSubclusters(run, note);
    if (slotsOf(run) === 0) continue;
    const ranges = await rangesOf(image, run, { offset, length }, geometry);
    if (!ranges) {
      await look();
      await lookAtStored(image, run, looking, note);
      continue;
    }
    for (const range of ranges) {
      if (bytes + range.length > buffer.length) await look();
      round.push(range);
      bytes += range.length;
    }
  }
  await look();
}

/** Undefined: the tables don't say where all of it lies. */
async function rangesOf(
  image: CheckedImage,
  run: FetchedRun,
  stretch: { readonly offset: number; readonly length: number },
  geometry: Geometry,
): Promise<FetchedRange[] | undefined> {
  const ranges: FetchedRange[] = [];
  try {
    for await (const range of storedRanges(image, run, stretch, geometry)) ranges.push(range);
    return ranges;
  } catch (error) {
    if (damageIn(error) === undefined) throw error;
    return undefined;
  }
}

/** @param ranges in guest order; they fit into the buffer */
async function lookAtRanges(
  image: CheckedImage,
  file: ReadableFile,
  ranges: readonly FetchedRange[],
  { geometry, buffer }: Looking,
  note: OnDamage,
): Promise<void> {
  const spare = buffer.length - ranges.reduce((sum, { length }) => sum + length, 0);
  const { requests } = mergedRequests(ranges, { ...REQUEST_LIMITS, spare });
  /** Of each range that could be read. */
  const read = new Map<FetchedRange, Buffer>();
  let free = buffer;
  const asked = requests.map(async ({ position, length, ranges: parts }) => {
    const target = free.subarray(0, length);
    free = free.subarray(length);
    await fetchInto(target, file, position, geometry);
    for (const part of parts) {
      const at = part.position - position;
      read.set(part, target.subarray(at, at + part.length));
    }
  });
  for (const outcome of await Promise.allSettled(asked)) {
    if (outcome.status === "rejected" && damageIn(outcome.reason) === undefined) throw outcome.reason;
  }
  for (const range of ranges) {
    const clusters = await clustersIn(image, range, read.get(range), geometry);
    if (clusters) image.prove(range.run, range.cluster, clusters, note);
    else await lookAtEach(image, range, geometry, note);
  }
}

/** Undefined: they can't be read or decompressed. */
async function clustersIn(
  image: CheckedImage,
  range: FetchedRange,
  bytes: Buffer | undefined,
  geometry: Geometry,
): Promise<Buffer | undefined> {
  if (!bytes) return undefined;
  try {
    return await clustersOf(image, range, bytes, geometry);
  } catch (error) {
    if (damageIn(error) === undefined) throw error;
    return undefined;
  }
}

/** Reads cluster by cluster, so that the damage names only those that can't be read. */
async function lookAtEach(
  image: CheckedImage,
  { run, cluster, count }: FetchedRange,
  geometry: Geometry,
  note: OnDamage,
): Promise<void> {
  const { clusterSize, virtualSize } = geometry;
  const buffer = Buffer.allocUnsafe(clusterSize);
  for (let each = cluster; each < cluster + count; each += 1) {
    const start = each * clusterSize;
    const bytes = buffer.subarray(0, Math.min(clusterSize, virtualSize - start));
    await image.read(run, start, bytes, note);
  }
}
