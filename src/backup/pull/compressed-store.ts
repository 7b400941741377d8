import { BackupError, UsageError } from "../base/errors.js";
import { type CompressedSegment, compressSegment, storeOutcomes } from "../compress/compress-segment.js";
import { CompressThreads } from "../compress/compress-threads.js";
import { DigestFileWriter } from "../digest/digest-file-writer.js";
import type { NewFiles } from "../host/new-files.js";
import { dataBytesOf, type ImageFormat } from "../image/image.js";
import { assertCompression, type CompressionMethod, DEFAULT_LEVEL } from "../qcow2/compress-cluster.js";
import { Qcow2CompressedWriter } from "../qcow2/compressed-writer.js";
import type { Qcow2WriterOptions } from "../qcow2/finish.js";
import { BufferPool } from "./buffer-pool.js";
import { BufferedLanding } from "./buffered-landing.js";
import type { DigestTarget, FinishedStore, ImageStore } from "./image-store.js";
import type { Segment } from "./segment.js";

/** How an image is compressed. */
export interface ImageCompression {
  /** `zstd` needs Node 22.15 or newer, and QEMU 5.1 or newer to be read. */
  readonly method: CompressionMethod;
  /**
   * The disks of a point share theirs; left out: a thread for this image alone.
   * @internal
   */
  readonly workers?: CompressThreads | undefined;
  /** Bytes of the buffers that segments wait in; default 12 MiB. */
  readonly bufferBytes?: number | undefined;
}

/** The largest segment: so much is compressed by one thread at a time. */
export const MOST_COMPRESSED_AT_A_TIME = 1024 * 1024;
/** Enough for four segments in flight, four that are being compressed, and as many that wait for either. */
export const BUFFER_BYTES = 12 * 1024 * 1024;
/** One being read, one being compressed, one that waits for its turn. */
const LEAST_BUFFERS = 3;

interface CompressedStoreOptions extends Qcow2WriterOptions {
  readonly path: string;
  /** The image stands for the whole disk; otherwise it has only what changed. */
  readonly complete: boolean;
  readonly digests?: DigestTarget | undefined;
  readonly compress: ImageCompression;
  /** Bytes of clusters that a segment stores at the most. */
  readonly segmentBytes: number;
}

/**
 * A qcow2 image of compressed clusters. How long a stream becomes is known only when it is there, so segments wait in
 * buffers, of which there are few:
 *
 *     plan -> buffer granted -> pieces land -> another thread digests and compresses -> ... its turn ... -> stored, buffer free
 *
 * Buffers are granted in the order of the plan and come back in that order; what is compressed early keeps its
 * buffer until its turn. So the segment whose turn it is always has one, and nothing can wait for itself.
 */
export class CompressedStore implements ImageStore {
  readonly #writer: Qcow2CompressedWriter;
  readonly #options: CompressedStoreOptions;
  readonly #digests: DigestFileWriter | undefined;
  readonly #workers: CompressThreads;
  readonly #ownWorkers: CompressThreads | undefined;
  readonly #buffers: BufferPool;
  /** Everything recorded so far; never rejects. */
  #tail: Promise<void> = Promise.resolve();
  #failure: { readonly reason: unknown } | undefined;
  #dataBytes = 0;

  private constructor(
    writer: Qcow2CompressedWriter,
    digests: DigestFileWriter | undefined,
    options: CompressedStoreOptions,
  ) {
    const { compress, segmentBytes } = options;
    this.#writer = writer;
    this.#digests = digests;
    this.#options = options;
    this.#ownWorkers = compress.workers ? undefined : new CompressThreads();
    this.#workers = compress.workers ?? (this.#ownWorkers as CompressThreads);
    const count = Math.floor((compress.bufferBytes ?? BUFFER_BYTES) / segmentBytes);
    this.#buffers = new BufferPool(segmentBytes, Math.max(LEAST_BUFFERS, count));
  }

  /**
   * @param files takes charge of what is made
   * @throws {UsageError} the geometry is beyond what qcow2 can hold, or this version of Node lacks the method
   * @throws the file system's error, with `code`
   */
  static async create(options: CompressedStoreOptions, files: NewFiles): Promise<CompressedStore> {
    const { path, geometry, complete, digests, compress } = options;
    assertCompression(compress.method);
    const writerOptions = { geometry, backing: options.backing, compression: compress.method };
    const writer = files.add(path, await Qcow2CompressedWriter.create(path, writerOptions));
    if (digests === undefined) return new CompressedStore(writer, undefined, options);
    const header = { algorithm: digests.algorithm, geometry, complete };
    const file = files.add(digests.path, await DigestFileWriter.create(digests.path, header));
    return new CompressedStore(writer, file, options);
  }

  get dataBytes(): number {
    return this.#dataBytes;
  }

  async landing(segment: Segment, signal: AbortSignal): Promise<BufferedLanding<CompressedSegment>> {
    // A segment of zeroes alone needs no buffer.
    const buffer = segment.clusters === 0 ? new ArrayBuffer(0) : await this.#buffers.take(signal);
    const { geometry } = this.#writer;
    return new BufferedLanding(segment, geometry, buffer, (filled) => this.#compress(segment, filled));
  }

  /** @throws what went wrong with what was recorded */
  async capacity(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure.reason;
  }

  record(outcome: Promise<CompressedSegment>): void {
    this.#tail = this.#tail
      .then(() => this.#store(outcome))
      .catch((reason: unknown) => {
        this.#fail(reason);
      });
  }

  async complete(): Promise<void> {
    await this.#tail;
    await this.capacity();
  }

  async finish(options: { readonly sync: boolean }): Promise<FinishedStore> {
    const { storedBytes } = await this.#writer.finish(options);
    const digestsSha256 = (await this.#digests?.finish(options))?.sha256;
    return { storedBytes, digestsSha256 };
  }

  /** Stores nothing from here on, whatever is still being compressed. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#fail(new BackupError("E_CLUSTER_WORKER", "the image was closed"));
    await this.#ownWorkers?.close();
  }

  /** Takes the buffer over. A failure is known at once, whether or not it is the segment's turn. */
  #compress(segment: Segment, buffer: ArrayBuffer): Promise<CompressedSegment> {
    const { compress, digests } = this.#options;
    const compression = { method: compress.method, level: DEFAULT_LEVEL };
    const options = { digest: digests?.algorithm, compression };
    const outcome = compressSegment(segment, buffer, this.#writer.geometry, this.#workers, options);
    outcome.catch((reason: unknown) => {
      this.#fail(reason);
    });
    return outcome;
  }

  async #store(segment: Promise<CompressedSegment>): Promise<void> {
    const { outcomes, buffer } = await segment;
    if (this.#failure !== undefined) return;
    const { complete } = this.#options;
    storeOutcomes(outcomes, this.#writer, { complete });
    for (const { run, digests } of outcomes) {
      this.#dataBytes += dataBytesOf(run, this.#writer.geometry);
      // In a complete image zeroes need not be said.
      if (!complete || run.kind !== "zero") this.#digests?.add(run, digests);
    }
    if (buffer.byteLength > 0) this.#buffers.give(buffer);
  }

  /** Keeps the first failure, and refuses buffers from here on. */
  #fail(reason: unknown): void {
    this.#failure ??= { reason };
    this.#buffers.close(this.#failure.reason);
  }
}

/**
 * To be asked before anything begins.
 * @throws {UsageError} a format that has no compression, or a method that this version of Node lacks
 */
export function assertCompressible(format: ImageFormat, method: CompressionMethod): void {
  if (format !== "qcow2") {
    const message = `a ${format} image can't be compressed: use --format qcow2, a .qcow2 name, or no --compress`;
    throw new UsageError("E_COMPRESS_FORMAT", message);
  }
  assertCompression(method);
}
