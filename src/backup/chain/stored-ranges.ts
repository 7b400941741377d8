/**
 * Data of images that is fetched from elsewhere by requests for what lies side by side in a file, whatever
 * the guest sees there, and compared with its digests when it has arrived.
 */

import type { Geometry } from "../image/image.js";
import type { ReadableFile } from "../image/readable-file.js";
import type { CheckedImage, DigestedRun } from "./checked-image.js";
import type { NeededRange } from "./merged-requests.js";

/** Bytes that are compared with their digests at a time: they stay in the processor's cache until then. */
const PROVEN_AT_A_TIME = 512 * 1024;

/** What is needed of an image. A layer has it too. */
type Image = Pick<CheckedImage, "isCompressed" | "streamOf" | "decompress">;

export type FetchedRun = Exclude<DigestedRun, { readonly kind: "zero" }>;

/** Neighbouring clusters of an image, and where they lie in its file. */
export interface FetchedRange<Run extends FetchedRun = FetchedRun> extends NeededRange {
  readonly run: Run;
  /** The first cluster. */
  readonly cluster: number;
  readonly count: number;
  /** A single one, whose stream is there. */
  readonly isCompressed: boolean;
}

/**
 * Where the clusters of a run lie that touch a stretch of the disk, in guest order.
 * @param offset in bytes; the stretch is in the run
 * @throws {DamageError} there is no compressed cluster where the run has one
 */
export async function* storedRanges<Run extends FetchedRun>(
  image: Image,
  run: Run,
  { offset, length }: { readonly offset: number; readonly length: number },
  { clusterSize, virtualSize }: Geometry,
): AsyncGenerator<FetchedRange<Run>> {
  const isCompressed = image.isCompressed(run);
  const most = isCompressed ? 1 : Math.max(1, Math.floor(PROVEN_AT_A_TIME / clusterSize));
  const end = Math.ceil((offset + length) / clusterSize);
  for (let cluster = Math.floor(offset / clusterSize); cluster < end; cluster += most) {
    const count = Math.min(most, end - cluster);
    const first = { run, cluster, count, isCompressed };
    if (isCompressed) {
      const { hostOffset, length: bytes } = await image.streamOf(cluster);
      yield { ...first, position: hostOffset, length: bytes };
    } else {
      const bytes = Math.min((cluster + count) * clusterSize, virtualSize) - cluster * clusterSize;
      yield { ...first, position: run.hostOffset + (cluster - run.cluster) * clusterSize, length: bytes };
    }
  }
}

/**
 * Fills `target` from byte `position` of an image's file. As in QEMU, an incomplete last cluster continues
 * with zeroes.
 * @throws {DamageError} the file ends before that
 */
export async function fetchInto(
  target: Buffer,
  file: ReadableFile,
  position: number,
  { clusterSize }: Geometry,
): Promise<void> {
  const size = await file.size();
  const isInside = position + target.length <= Math.ceil(size / clusterSize) * clusterSize;
  await file.fill(target, position, isInside ? size : Number.POSITIVE_INFINITY);
}

/**
 * The clusters of a range as the guest has them. They lie in the memory of `bytes`, unless they are
 * compressed.
 * @param bytes of the file
 * @throws {DamageError} a compressed cluster can't be decompressed
 */
export async function clustersOf(
  image: Image,
  { cluster, isCompressed }: FetchedRange,
  bytes: Buffer,
  { clusterSize, virtualSize }: Geometry,
): Promise<Buffer> {
  if (!isCompressed) return bytes;
  const whole = await image.decompress(cluster, bytes);
  return whole.subarray(0, Math.min(clusterSize, virtualSize - cluster * clusterSize));
}
