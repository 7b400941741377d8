import type { NbdClient } from "../../nbd/index.js";
import type { Extent } from "../base/extent.js";
import { Progress } from "../base/progress.js";
import { exportExtents } from "../export/export-extents.js";
import { type ByteSource, fewestConnections, mayReadClean, readerOf } from "../export/open-export.js";
import { NewFiles } from "../host/new-files.js";
import type { Geometry, ImageFormat, PlannedRun } from "../image/image.js";
import { assertCompressible, MOST_COMPRESSED_AT_A_TIME } from "./compressible.js";
import { journalOf, type NewImageOptions, openImageStore } from "./open-store.js";
import { GranularityError, type PlanTotals, plan } from "./plan.js";
import { pull } from "./pull.js";
import type { RateLimit } from "./rate-limit.js";
import { RequestSizes, RequestWindow, type Window } from "./window.js";

export interface PullImageOptions extends CopyImageOptions {
  /** Connected by `openExport`, with the context of `bitmap`. */
  readonly client: NbdClient;
  /** Copy only what this dirty bitmap marks; default: everything. */
  readonly bitmap?: string | undefined;
  /** With `bitmap`: the disk's size in bytes at the parent point. The disk may have grown since. */
  readonly parentSize?: number | undefined;
}

/** A disk to be read: an export, or an image that is imported. */
export interface DiskSource {
  /** Bytes. */
  readonly virtualSize: number;
  /** True if nothing is clean, so the image covers the whole disk. */
  readonly complete: boolean;
  /** Preferred size of reads, in bytes. */
  readonly preferredBlock?: number | undefined;
  /** Most bytes that one read may return; undefined if larger reads gain nothing. */
  readonly mostRead?: number | undefined;
  /** Reading so many clean bytes costs less than another read. 0 if clean bytes can't be read. */
  readonly readThrough: number;
  /** Number of requests sent so far. */
  readonly requests: number;
  /**
   * Begins a walk over the whole disk. Returns its extents, gapless from byte 0 to the end, and the source of
   * their bytes.
   */
  begin(signal: AbortSignal | undefined): {
    readonly extents: AsyncIterable<readonly Extent[]>;
    readonly bytes: ByteSource;
  };
  /** Least number of connections, for a source that is read over connections. */
  readonly fewestConnections?: number | undefined;
  /** Called before each segment but the first with the number of connections that there should be. */
  widen(connections: number): void;
}

export interface CopyImageOptions extends NewImageOptions {
  /** Runs when all files are complete. If it fails, the files are removed as after any other failure. */
  readonly publish?: (() => Promise<void>) | undefined;
  readonly window?: Window | undefined;
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: PullProgress) => void) | undefined;
}

/** Sizes and offsets in bytes of the guest. */
export interface PullProgress {
  readonly virtualSize: number;
  /**
   * Where the furthest segment that was stored ends: segments before it may still be under way. Never falls.
   */
  readonly position: number;
  readonly readBytes: number;
}

/** Sizes in bytes. */
export interface PullResult {
  readonly format: ImageFormat;
  readonly mode: "full" | "incremental";
  readonly virtualSize: number;
  readonly clusterSize: number;
  /**
   * What the image defines: the whole disk in a full copy; in an increment what the bitmap marked, and the
   * data of the part by which the disk has grown.
   */
  readonly dirtyBytes: number;
  /**
   * The part of `dirtyBytes` that is stored as data. A cluster that is defined throughout counts as a whole
   * if any of its bytes is not zero.
   */
  readonly dataBytes: number;
  /** The rest of `dirtyBytes`. */
  readonly zeroBytes: number;
  /**
   * Guest data in the image file, without tables. A compressed cluster counts with the length of its stream.
   */
  readonly storedBytes: number;
  /** Number of extents that are not clean. */
  readonly extents: number;
  /** Number of requests sent to the source. */
  readonly requests: number;
  /** Bytes that were asked from the source, including clean ones between the ranges. */
  readonly readBytes: number;
  /** The part of `dataBytes` that was in an image that a killed run had left; undefined: there was none. */
  readonly keptBytes: number | undefined;
  readonly seconds: number;
  /** SHA-256 of the digest file in hexadecimal; undefined if there is none. */
  readonly digestsSha256: string | undefined;
}

/** So many clean bytes cost about as much as another request (calculated, docs/performance-history.md). */
const READ_THROUGH = 32 * 1024;
/**
 * With two, a lane does the work of one segment for twice the bytes. More were measured to cost the server
 * memory and time (docs/performance-history.md).
 */
const MOST_REQUESTS_IN_SEGMENT = 2;
const DEFAULT_CLUSTER_SIZE = 64 * 1024;
/** Its 32 subclusters have 512 bytes each, the finest granularity of QEMU's bitmaps. */
const FINEST_CLUSTER_SIZE = 16 * 1024;

/**
 * Copies one export into one new image. Nothing may exist at the paths yet. After a failure no file is left.
 *
 * The cluster size is 64 KiB. If the bitmap is finer than the subclusters of such clusters (2 KiB), the work
 * begins again with 16 KiB.
 *
 * @throws {UsageError} `E_COMPRESS_FORMAT`: a raw image can't be compressed; or this version of Node lacks
 *   the compression method, or the format can't hold a disk of this size
 * @throws {NbdError} a read or a block status failed
 * @throws {BackupError} `E_GRANULARITY`: the bitmap is finer than 512 bytes; or a thread that computes
 *   digests or compresses failed
 * @throws the file system's error, with `code`
 */
export async function pullImage(options: PullImageOptions): Promise<PullResult> {
  const { client, bitmap, parentSize, ...rest } = options;
  return await copyImage(exportSource(client, bitmap, parentSize), rest);
}

/**
 * Like `pullImage`, but from any source that can be read like a disk.
 * @throws what the source throws, and otherwise like `pullImage`
 */
export async function copyImage(source: DiskSource, options: CopyImageOptions): Promise<PullResult> {
  if (options.compress?.method) assertCompressible(options.format, options.compress.method);
  const left = options.journal?.resume
    ? await (await import("./left-header.js")).leftHeaderOf(options.journal)
    : undefined;
  try {
    return await copyWithClusters(source, options, left?.geometry.clusterSize ?? DEFAULT_CLUSTER_SIZE);
  } catch (error) {
    if (!(error instanceof GranularityError)) throw error;
    return await copyWithClusters(source, options, FINEST_CLUSTER_SIZE);
  }
}

/**
 * An export as a source.
 * @param parentSize with `bitmap`: the disk's size in bytes at the parent point
 */
export function exportSource(
  client: NbdClient,
  bitmap: string | undefined,
  parentSize: number | undefined,
): DiskSource {
  const readsClean = mayReadClean(client, bitmap);
  // Where clean bytes can't be read, only the bitmap tells about the part by which the disk has grown.
  const grownFrom = readsClean ? parentSize : undefined;
  return {
    virtualSize: client.export.size,
    complete: bitmap === undefined,
    preferredBlock: client.export.blockSize?.preferred,
    mostRead: readsClean ? client.export.blockSize?.maximum : undefined,
    readThrough: readsClean ? READ_THROUGH : 0,
    get requests() {
      return client.requests;
    },
    begin: (signal) => ({
      extents: exportExtents(client, { bitmap, parentSize: grownFrom, signal }),
      bytes: readerOf(client, bitmap),
    }),
    fewestConnections: fewestConnections(client),
    widen: (connections) => client.widen(connections),
  };
}

async function copyWithClusters(
  source: DiskSource,
  options: CopyImageOptions,
  clusterSize: number,
): Promise<PullResult> {
  const started = performance.now();
  const { signal } = options;
  const { virtualSize, complete } = source;
  const window = options.window ?? {};
  const geometry: Geometry = { virtualSize, clusterSize };
  const totals: PlanTotals = { extents: 0, definedBytes: 0 };
  const requestsBefore = source.requests;
  const requestSizes = new RequestSizes({
    window,
    clusterSize,
    preferredBlock: source.preferredBlock,
    maximum: options.compress || options.rateLimit ? undefined : source.mostRead,
    readThrough: source.readThrough,
  });
  const segmentBytes = segmentBytesFor(options, requestSizes.most);

  await using files = new NewFiles();
  const journal = await journalOf(options, { geometry, complete });
  await using _ = journal;
  const opened = await openImageStore(options, { geometry, complete, segmentBytes, journal }, files);
  const { from } = opened;
  await using store = opened.store;
  const keptBytes = from && store.dataBytes;
  const requestWindow = new RequestWindow(window, segmentBytes, source.fewestConnections);
  const progress = new Progress(options.onProgress);
  const { extents, bytes } = source.begin(signal);
  let readBytes = 0;
  let position = 0;
  await pull({
    source: bytes,
    into: store,
    segments: plan(
      extents,
      { geometry, segmentBytes, firstSegmentBytes: requestSizes.firstSegmentBytes, from },
      totals,
    ),
    window: requestWindow,
    requestSizes,
    rateLimit: options.rateLimit,
    widen: (connections) => source.widen(connections),
    signal,
    onSegment: ({ readBytes: bytesOfSegment, segment }) => {
      if (segment.mostRead !== undefined) requestSizes.enlarge();
      readBytes += bytesOfSegment;
      position = Math.max(position, endOf(segment.runs, geometry));
      progress.note({ virtualSize, position, readBytes });
    },
  });
  progress.finish();
  const { storedBytes, digestsSha256 } = await store.finish({ sync: options.sync });
  await files.close();
  await options.publish?.();
  files.keep();

  const { dataBytes } = store;
  return {
    format: options.format,
    mode: complete ? "full" : "incremental",
    virtualSize,
    clusterSize,
    dirtyBytes: totals.definedBytes,
    dataBytes,
    zeroBytes: totals.definedBytes - dataBytes,
    storedBytes,
    extents: totals.extents,
    requests: source.requests - requestsBefore,
    readBytes,
    keptBytes,
    seconds: (performance.now() - started) / 1000,
    digestsSha256,
  };
}

/** The guest offset at which a segment's last run ends, at most the virtual size; 0 without runs. */
export function endOf(runs: readonly PlannedRun[], { clusterSize, virtualSize }: Geometry): number {
  const last = runs.at(-1);
  return last === undefined ? 0 : Math.min((last.cluster + last.count) * clusterSize, virtualSize);
}

/**
 * Most bytes that a segment stores. A segment of several requests costs less for each of them. But the window
 * must have room for at least two such segments.
 */
function segmentBytesFor({ window = {}, compress }: CopyImageOptions, requestBytes: number): number {
  // Each segment occupies a buffer until it is compressed, so it stays small whatever the request size is.
  if (compress) return Math.min(requestBytes, MOST_COMPRESSED_AT_A_TIME);
  const { inFlight = Number.POSITIVE_INFINITY } = window;
  const count = Math.min(MOST_REQUESTS_IN_SEGMENT, Math.floor(inFlight / (2 * requestBytes)));
  return requestBytes * Math.max(1, count);
}
