import type { NbdClient } from "../../nbd/index.js";
import type { Extent } from "../base/extent.js";
import { Progress } from "../base/progress.js";
import { exportExtents } from "../export/export-extents.js";
import { type ByteSource, fewestConnections, mayReadClean, readerOf } from "../export/open-export.js";
import { NewFiles } from "../host/new-files.js";
import type { Geometry, ImageFormat, PlannedRun } from "../image/image.js";
import type { Backing } from "../qcow2/writer.js";
import {
  assertCompressible,
  CompressedStore,
  type ImageCompression,
  MOST_COMPRESSED_AT_A_TIME,
} from "./compressed-store.js";
import type { DigestTarget, ImageStore } from "./image-store.js";
import { PlainStore } from "./plain-store.js";
import { GranularityError, type PlanTotals, plan } from "./plan.js";
import { pull } from "./pull.js";
import type { RateLimit } from "./rate-limit.js";
import { RequestSizes, RequestWindow, type Window } from "./window.js";

export interface PullImageOptions extends CopyImageOptions {
  /** Connected by `openExport`, with the context of `bitmap`. */
  readonly client: NbdClient;
  /** Only what this dirty bitmap marks; left out: everything. */
  readonly bitmap?: string | undefined;
  /** With `bitmap`: the size in bytes of the disk that the increment is laid over, which may have grown since. */
  readonly parentSize?: number | undefined;
}

/** What is read, and how: an export, or an image that is imported. */
export interface DiskSource {
  /** Bytes. */
  readonly virtualSize: number;
  /** Nothing is clean: the image will stand for the whole disk. */
  readonly complete: boolean;
  /** Of all reads, bytes. */
  readonly preferredBlock?: number | undefined;
  /** The most bytes of one read; left out where larger reads bring nothing. */
  readonly mostRead?: number | undefined;
  /** Reading that many clean bytes along is cheaper than another read. */
  readonly readThrough: number;
  /** Asked for so far. */
  readonly requests: number;
  /** Begins a walk over the whole disk, and the reads that it tells of. */
  begin(signal: AbortSignal | undefined): {
    readonly extents: AsyncIterable<readonly Extent[]>;
    readonly bytes: ByteSource;
  };
  /** At the least, where it is read over connections. */
  readonly fewestConnections?: number | undefined;
  /** Called now and then, with how many connections there should be. */
  widen(connections: number): void;
}

export interface CopyImageOptions {
  readonly imagePath: string;
  readonly format: ImageFormat;
  /** For qcow2: what the header names as the image below. */
  readonly backing?: Backing | undefined;
  /** For a raw increment: where its extents are described. */
  readonly mapPath?: string | undefined;
  readonly digests?: DigestTarget | undefined;
  /** qcow2 only; left out: clusters are stored as they are. */
  readonly compress?: ImageCompression | undefined;
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
  /** What the image defines: all of the disk for a full copy, for an increment what the bitmap marked, and new data. */
  readonly dirtyBytes: number;
  /** What of that is stored as data: a cluster that is defined throughout counts as a whole if any of it is not zero. */
  readonly dataBytes: number;
  readonly zeroBytes: number;
  /** Bytes of guest data in the image file, as stored: of a compressed cluster the length of its stream, without tables. */
  readonly storedBytes: number;
  readonly extents: number;
  readonly requests: number;
  readonly seconds: number;
  /** Of the digest file, in hexadecimal digits. */
  readonly digestsSha256: string | undefined;
}

/** Reading that many clean bytes along takes less than another request (docs/performance.md). */
const READ_THROUGH = 32 * 1024;
/** Measured: one lane's work for twice the bytes; with more at a time the server's memory grows, and its time (docs/performance.md). */
const MOST_REQUESTS_IN_SEGMENT = 2;
const DEFAULT_CLUSTER_SIZE = 64 * 1024;
/** With 32 subclusters of 512 bytes: as fine as QEMU's bitmaps can be. */
const FINEST_CLUSTER_SIZE = 16 * 1024;

/**
 * One export into one image, at paths that must not exist yet. After a failure none of the files is left.
 *
 * The cluster size is 64 KiB; if the bitmap turns out to be finer than what such clusters can express (2 KiB), the
 * work begins again with 16 KiB.
 *
 * @throws {UsageError} this format or this version of Node can't compress so
 * @throws {NbdError} a read or a block status failed
 * @throws {BackupError} what the image writer refuses
 * @throws the file system's errors
 */
export async function pullImage(options: PullImageOptions): Promise<PullResult> {
  const { client, bitmap, parentSize, ...rest } = options;
  return await copyImage(exportSource(client, bitmap, parentSize), rest);
}

/**
 * As `pullImage`, from anything that can be read like a disk.
 * @throws what the source throws, and otherwise as `pullImage`
 */
export async function copyImage(source: DiskSource, options: CopyImageOptions): Promise<PullResult> {
  if (options.compress) assertCompressible(options.format, options.compress.method);
  try {
    return await copyWithClusters(source, options, DEFAULT_CLUSTER_SIZE);
  } catch (error) {
    if (!(error instanceof GranularityError)) throw error;
    return await copyWithClusters(source, options, FINEST_CLUSTER_SIZE);
  }
}

function exportSource(
  client: NbdClient,
  bitmap: string | undefined,
  parentSize: number | undefined,
): DiskSource {
  const readsClean = mayReadClean(client, bitmap);
  // Where clean bytes can't be read, what the disk has grown by is what the bitmap says.
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
  await using store = await createStore(options, { geometry, complete, segmentBytes }, files);
  const requestWindow = new RequestWindow(window, segmentBytes, source.fewestConnections);
  const progress = new Progress(options.onProgress);
  const { extents, bytes } = source.begin(signal);
  let readBytes = 0;
  await pull({
    source: bytes,
    into: store,
    segments: plan(
      extents,
      { geometry, segmentBytes, firstSegmentBytes: requestSizes.firstSegmentBytes },
      totals,
    ),
    window: requestWindow,
    limits: requestSizes,
    rateLimit: options.rateLimit,
    signal,
    onSegment: ({ readBytes: bytesOfSegment, segment }) => {
      if (segment.mostRead !== undefined) requestSizes.enlarge();
      readBytes += bytesOfSegment;
      const position = endOf(segment.runs, geometry);
      progress.note({ virtualSize, position, readBytes });
      source.widen(requestWindow.connections);
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
    seconds: (performance.now() - started) / 1000,
    digestsSha256,
  };
}

/** The guest offset that a segment goes up to. */
export function endOf(runs: readonly PlannedRun[], { clusterSize, virtualSize }: Geometry): number {
  const last = runs.at(-1);
  return last === undefined ? 0 : Math.min((last.cluster + last.count) * clusterSize, virtualSize);
}

/** A lane that asks for several things at once costs less for each; as long as there are lanes beside it. */
function segmentBytesFor({ window = {}, compress }: CopyImageOptions, requestBytes: number): number {
  // What waits in buffers to be compressed has to be little, whatever is asked for.
  if (compress) return Math.min(requestBytes, MOST_COMPRESSED_AT_A_TIME);
  const { inFlight = Number.POSITIVE_INFINITY } = window;
  const count = Math.min(MOST_REQUESTS_IN_SEGMENT, Math.floor(inFlight / (2 * requestBytes)));
  return requestBytes * Math.max(1, count);
}

async function createStore(
  options: CopyImageOptions,
  image: { readonly geometry: Geometry; readonly complete: boolean; readonly segmentBytes: number },
  files: NewFiles,
): Promise<ImageStore> {
  const { imagePath: path, format, backing, mapPath, digests, compress } = options;
  if (compress) return await CompressedStore.create({ ...image, path, backing, digests, compress }, files);
  return await PlainStore.create({ ...image, path, format, backing, mapPath, digests }, files);
}
