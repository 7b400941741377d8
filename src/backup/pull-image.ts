import type { NbdClient } from "../nbd/index.js";
import type { DigestAlgorithm } from "./digest.js";
import { DigestBehind } from "./digest-behind.js";
import { DigestFileWriter } from "./digest-file.js";
import { exportExtents } from "./export-extents.js";
import { createImage, type ImageFormat } from "./image/create.js";
import { type ClusterRun, type Geometry, slotsOf } from "./image/image.js";
import type { Backing } from "./image/qcow2-writer.js";
import { Ledger, type LedgerDigests } from "./ledger.js";
import { NewFiles } from "./new-files.js";
import { mayReadClean, readerOf } from "./open-export.js";
import { Pace, segmentBytesOf, type Window } from "./pace.js";
import { GranularityError, type PlanTotals, plan } from "./plan.js";
import { pull } from "./pull.js";
import type { RateLimit } from "./rate-limit.js";
import { WriteThrough } from "./write-through.js";

export interface PullImageOptions {
  /** Connected by `openExport`, with the context of `bitmap`. */
  readonly client: NbdClient;
  /** Only what this dirty bitmap marks; left out: everything. */
  readonly bitmap?: string | undefined;
  readonly imagePath: string;
  readonly format: ImageFormat;
  /** For qcow2: what the header names as the image below. */
  readonly backing?: Backing | undefined;
  /** For a raw increment: where its extents are described. */
  readonly mapPath?: string | undefined;
  readonly digests?: { readonly path: string; readonly algorithm: DigestAlgorithm } | undefined;
  /** Runs when all files are complete; if it fails, they are removed like after any other failure. */
  readonly publish?: (() => Promise<void>) | undefined;
  /** Flush to stable storage before returning. */
  readonly sync: boolean;
  readonly window?: Window | undefined;
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: PullProgress) => void) | undefined;
}

/** Bytes of the guest. */
export interface PullProgress {
  readonly virtualSize: number;
  /** How far the walk over the disk has come. */
  readonly position: number;
  readonly readBytes: number;
}

/** Sizes in bytes. */
export interface PullResult {
  readonly format: ImageFormat;
  readonly mode: "full" | "incremental";
  readonly virtualSize: number;
  readonly clusterSize: number;
  /** What the image defines: all of the disk for a full copy, what the bitmap marked for an increment. */
  readonly dirtyBytes: number;
  /** What of that is not zero, in whole clusters (cut off at `dirtyBytes`). */
  readonly dataBytes: number;
  readonly zeroBytes: number;
  /** Clusters in the image file. */
  readonly storedBytes: number;
  readonly extents: number;
  readonly requests: number;
  readonly seconds: number;
  /** Of the digest file, in hexadecimal digits. */
  readonly digestsSha256: string | undefined;
}

/** Reading that many clean bytes along takes less than another request (docs/performance.md). */
const READ_THROUGH = 32 * 1024;
const DEFAULT_CLUSTER_SIZE = 64 * 1024;
/** With 32 subclusters of 512 bytes: as fine as QEMU's bitmaps can be. */
const FINEST_CLUSTER_SIZE = 16 * 1024;

/**
 * One export into one image, at paths that must not exist yet. After a failure none of the files is left.
 *
 * The cluster size is 64 KiB; if the bitmap turns out to be finer than what such clusters can express (2 KiB), the
 * work begins again with 16 KiB.
 *
 * @throws {NbdError} a read or a block status failed
 * @throws {BackupError} what the image writer refuses
 * @throws the file system's errors
 */
export async function pullImage(options: PullImageOptions): Promise<PullResult> {
  try {
    return await pullWithClusters(options, DEFAULT_CLUSTER_SIZE);
  } catch (error) {
    if (!(error instanceof GranularityError)) throw error;
    return await pullWithClusters(options, FINEST_CLUSTER_SIZE);
  }
}

async function pullWithClusters(options: PullImageOptions, clusterSize: number): Promise<PullResult> {
  const started = performance.now();
  const { client, bitmap, signal } = options;
  const window = options.window ?? {};
  const geometry: Geometry = { virtualSize: client.export.size, clusterSize };
  const complete = bitmap === undefined;
  const totals: PlanTotals = { extents: 0, definedBytes: 0 };
  const requestsBefore = client.requests;
  const segmentBytes = segmentBytesOf(window, clusterSize, client.export.blockSize?.preferred);

  await using files = new NewFiles();
  const writer = files.add(options.imagePath, await createImage(options.imagePath, { ...options, geometry }));
  if (options.mapPath !== undefined) files.expect(options.mapPath);
  await using digests = options.digests && (await startDigests(options, options.digests, files, geometry));
  const notes = new Ledger({ writer, complete, digests });

  let readBytes = 0;
  let storedBytes = 0;
  await pull({
    source: readerOf(client, bitmap),
    segments: plan(exportExtents(client, { bitmap, signal }), { geometry, segmentBytes }, totals),
    land: (segment) => new WriteThrough(segment, writer),
    notes,
    pace: new Pace(window, segmentBytes),
    readThrough: mayReadClean(client, bitmap) ? READ_THROUGH : 0,
    rateLimit: options.rateLimit,
    signal,
    onSegment: (segment) => {
      readBytes += segment.readBytes;
      storedBytes += storedBytesOf(segment.runs, geometry);
      const position = endOf(segment.runs, geometry);
      options.onProgress?.({ virtualSize: geometry.virtualSize, position, readBytes });
    },
  });
  await writer.finish({ sync: options.sync });
  const digestsSha256 = (await digests?.file.finish({ sync: options.sync }))?.sha256;
  await files.close();
  await options.publish?.();
  files.keep();

  const dataBytes = Math.min(storedBytes, totals.definedBytes);
  return {
    format: options.format,
    mode: complete ? "full" : "incremental",
    virtualSize: geometry.virtualSize,
    clusterSize,
    dirtyBytes: totals.definedBytes,
    dataBytes,
    zeroBytes: totals.definedBytes - dataBytes,
    storedBytes,
    extents: totals.extents,
    requests: client.requests - requestsBefore,
    seconds: (performance.now() - started) / 1000,
    digestsSha256,
  };
}

/** Bytes of the clusters that were stored, cut off at the end of the disk. */
function storedBytesOf(runs: readonly ClusterRun[], { clusterSize, virtualSize }: Geometry): number {
  let bytes = 0;
  for (const run of runs) {
    const offset = run.cluster * clusterSize;
    bytes += Math.min(slotsOf(run) * clusterSize, virtualSize - offset);
  }
  return bytes;
}

/** The guest offset that a segment goes up to. */
export function endOf(runs: readonly ClusterRun[], { clusterSize, virtualSize }: Geometry): number {
  const last = runs.at(-1);
  return last === undefined ? 0 : Math.min((last.cluster + last.count) * clusterSize, virtualSize);
}

async function startDigests(
  { imagePath, bitmap }: PullImageOptions,
  { path, algorithm }: NonNullable<PullImageOptions["digests"]>,
  files: NewFiles,
  geometry: Geometry,
): Promise<LedgerDigests & AsyncDisposable> {
  const complete = bitmap === undefined;
  const file = files.add(path, await DigestFileWriter.create(path, { algorithm, geometry, complete }));
  const behind = new DigestBehind(imagePath, algorithm);
  return { algorithm, behind, file, [Symbol.asyncDispose]: () => behind.close() };
}
