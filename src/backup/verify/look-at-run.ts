import type { OnDamage } from "../base/damage.js";
import type { CheckedImage, DigestedRun } from "../chain/checked-image.js";
import { type Geometry, slotsOf } from "../image/image.js";

/** What an image is looked at with. */
export interface Looking {
  readonly geometry: Geometry;
  /** At least a cluster. */
  readonly buffer: Buffer;
}

/** Reads a run block by block, and compares it with its digests. */
export async function lookAtRun(
  image: CheckedImage,
  run: DigestedRun,
  { geometry, buffer }: Looking,
  note: OnDamage,
): Promise<void> {
  const { offset, end } = stretchOf(run, geometry);
  if (run.kind === "zero") {
    await image.expectZeroes(offset, end - offset, note);
    return;
  }
  if (run.kind === "partial") await image.expectZeroSubclusters(run, note);
  if (slotsOf(run) > 0) await lookAtStored(image, run, { geometry, buffer }, note);
}

/** As {@link lookAtRun}, of a run that stores something: only that. */
export async function lookAtStored(
  image: CheckedImage,
  run: DigestedRun,
  { geometry, buffer }: Looking,
  note: OnDamage,
): Promise<void> {
  const { offset, end } = stretchOf(run, geometry);
  for (let at = offset; at < end; at += buffer.length) {
    await image.read(run, at, buffer.subarray(0, Math.min(buffer.length, end - at)), note);
  }
}

/** In bytes of the disk; the last cluster may end with it. */
function stretchOf(
  { cluster, count }: DigestedRun,
  { clusterSize, virtualSize }: Geometry,
): { readonly offset: number; readonly end: number } {
  const offset = cluster * clusterSize;
  return { offset, end: Math.min(offset + count * clusterSize, virtualSize) };
}
