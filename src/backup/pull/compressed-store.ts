import assert from "node:assert/strict";
import { BackupError, DamageError } from "../base/errors.js";
import type { CompressedOutcome } from "../compress/compress-segment.js";
import { type CompressedSegment, compressSegment, NONE } from "../compress/compress-segment.js";
import { CompressThreads } from "../compress/compress-threads.js";
import { DEFAULT_DIGESTS, DIGEST_ALGORITHMS } from "../digest/algorithms.js";
import { createDigester, type Digester, digestClusters } from "../digest/digest.js";
import { DigestFileWriter } from "../digest/digest-file-writer.js";
import type { NewFiles } from "../host/new-files.js";
import { dataBytesOf, type Geometry, slotsOf } from "../image/image.js";
import type { NewPlace } from "../image/new-file.js";
import { assertCompression, type CompressionMethod } from "../qcow2/can-compress.js";
import { DEFAULT_LEVEL } from "../qcow2/compress-cluster.js";
import { Qcow2CompressedWriter } from "../qcow2/compressed-writer.js";
import type { Qcow2WriterOptions } from "../qcow2/finish.js";
import type { StoredClusters } from "../qcow2/stored-clusters.js";
import { BufferPool } from "./buffer-pool.js";
import { BufferedLanding } from "./buffered-landing.js";
import type { ImageJournal } from "./image-journal.js";
import type { Begun, DigestTarget, FinishedStore, ImageStore } from "./image-store.js";
import { endOfRuns, type JournalEntry } from "./journal-entry.js";
import type { LeftJournal } from "./left-journal.js";
import type { Segment } from "./segment.js";

/** How an image is compressed. */
export interface ImageCompression {
  /**
   * `zstd` needs Node 22.15 or newer, and QEMU 5.1 or newer to be read. Undefined: clusters are stored as
   * they are, but from front to back.
   */
  readonly method: CompressionMethod | undefined;
  /**
   * Threads that the disks of a point share; default: threads for this image alone.
   * @internal
   */
  readonly workers?: CompressThreads | undefined;
  /** Bytes of all buffers that hold segments; default 12 MiB, or 8 without a method. */
  readonly bufferBytes?: number | undefined;
}

/** Enough for four segments in flight, four being compressed and four that wait. */
const BUFFER_BYTES = 12 * 1024 * 1024;
/** The same where none is compressed: a thread has soon done with one. */
const PLAIN_BUFFER_BYTES = 8 * 1024 * 1024;

/** Bytes of all buffers that hold segments, unless told otherwise. @param method undefined: none is compressed */
export function bufferBytesFor(method: CompressionMethod | undefined): number {
  return method === undefined ? PLAIN_BUFFER_BYTES : BUFFER_BYTES;
}

/** One being read, one being compressed, one that waits for its turn. */
const LEAST_BUFFERS = 3;

export interface CompressedStoreOptions extends Qcow2WriterOptions {
  readonly path: NewPlace;
  /** True if the image covers the whole disk; false if it has only what changed. */
  readonly complete: boolean;
  readonly digests?: DigestTarget | undefined;
  readonly compress: ImageCompression;
  /** Undefined: none is kept. It needs digests. */
  readonly journal?: ImageJournal | undefined;
  /** Most bytes of clusters that a segment stores. */
  readonly segmentBytes: number;
}

/**
 * A qcow2 image of compressed clusters. The length of a stream is known only after compression, so segments
 * wait for their turn in a bounded number of buffers:
 *
 *     plan -> buffer granted -> pieces land -> thread digests, compresses -> its turn: stored, buffer free
 *
 * Buffers are granted in the order of the plan and come back in that order. A segment that is compressed
 * early keeps its buffer until its turn. So the segment whose turn it is always has a buffer, and there is no
 * deadlock.
 */
export class CompressedStore implements ImageStore {
  readonly #writer: Qcow2CompressedWriter;
  readonly #options: CompressedStoreOptions;
  readonly #digests: DigestFileWriter | undefined;
  readonly #workers: CompressThreads;
  readonly #ownWorkers: CompressThreads | undefined;
  readonly #buffers: BufferPool;
  /** Resolves when everything recorded so far is stored or has failed; never rejects. */
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
    options.journal?.follow(writer);
    this.#digests = digests;
    this.#options = options;
    this.#ownWorkers = compress.workers ? undefined : new CompressThreads();
    this.#workers = compress.workers ?? (this.#ownWorkers as CompressThreads);
    const count = Math.floor((compress.bufferBytes ?? bufferBytesFor(compress.method)) / segmentBytes);
    this.#buffers = new BufferPool(segmentBytes, Math.max(LEAST_BUFFERS, count));
  }

  /**
   * Creates the files, which must not exist.
   * @param files becomes the owner of the files
   * @throws {UsageError} the geometry is beyond what qcow2 can hold, or this version of Node lacks the method
   * @throws the file system's error, with `code`
   */
  static async create(options: CompressedStoreOptions, files: NewFiles): Promise<CompressedStore> {
    const { path, geometry, compress } = options;
    if (compress.method) assertCompression(compress.method);
    const writerOptions = { geometry, backing: options.backing, compression: compress.method };
    const writer = files.add(path, await Qcow2CompressedWriter.create(path, writerOptions));
    return await CompressedStore.#of(writer, options, files);
  }

  /**
   * Continues the image that a killed run left, as far as it is there. No other file of it may be left.
   * @throws {DamageError} the image is no regular file, or has other names too
   * @throws the file system's error, with `code`
   */
  static async resume(
    options: CompressedStoreOptions,
    files: NewFiles,
    left: LeftJournal,
  ): Promise<{ readonly store: CompressedStore; readonly from: Begun }> {
    const { path, geometry, compress, digests } = options;
    assert(typeof path === "string", "only a file of this machine can be gone on with");
    if (compress.method) assertCompression(compress.method);
    const writerOptions = { geometry, backing: options.backing, compression: compress.method };
    const writer = files.add(path, await Qcow2CompressedWriter.reopen(path, writerOptions));
    const store = await CompressedStore.#of(writer, options, files);
    const stored = writer.readBack();
    const digester = await createDigester(digests?.algorithm ?? DEFAULT_DIGESTS);
    let cluster = 0;
    const journal = await left.replay(async (entry) => {
      const isKept = await isThere(stored, entry, digester, geometry);
      if (!isKept) return false;
      store.#keep(entry);
      cluster = entry.position;
      return true;
    });
    await writer.cutBehind();
    options.journal?.continue(journal);
    return { store, from: { cluster, rank: writer.stored } };
  }

  static async #of(
    writer: Qcow2CompressedWriter,
    options: CompressedStoreOptions,
    files: NewFiles,
  ): Promise<CompressedStore> {
    const { geometry, complete, digests } = options;
    if (digests === undefined) return new CompressedStore(writer, undefined, options);
    const header = { algorithm: digests.algorithm, geometry, complete };
    const file = files.add(digests.path, await DigestFileWriter.create(digests.path, header));
    return new CompressedStore(writer, file, options);
  }

  get dataBytes(): number {
    return this.#dataBytes;
  }

  async landing(segment: Segment, signal: AbortSignal): Promise<BufferedLanding<CompressedSegment>> {
    // A segment of zero runs stores nothing, so its buffer is empty.
    const buffer = segment.clusters === 0 ? new ArrayBuffer(0) : await this.#buffers.take(signal);
    const { geometry } = this.#writer;
    return new BufferedLanding(segment, geometry, buffer, (filled) => this.#compress(segment, filled));
  }

  /** @throws the first failure of compressing or storing */
  async capacity(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure.reason;
    this.#options.journal?.assertWhole();
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
    await this.#options.journal?.complete();
    const { storedBytes } = await this.#writer.finish(options);
    this.#options.journal?.assertWhole();
    const digestsSha256 = (await this.#digests?.finish(options))?.sha256;
    return { storedBytes, digestsSha256 };
  }

  /** From here on nothing is stored, even if threads still compress. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#fail(new BackupError("E_CLUSTER_WORKER", "the image was closed"));
    await this.#ownWorkers?.close();
  }

  /** Becomes the owner of the buffer. A failure counts at once, even before the segment's turn. */
  #compress(segment: Segment, buffer: ArrayBuffer): Promise<CompressedSegment> {
    const { compress, digests } = this.#options;
    const { method } = compress;
    const compression = method && { method, level: DEFAULT_LEVEL };
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
    const { complete, journal } = this.#options;
    const first = this.#writer.stored;
    storeOutcomes(outcomes, this.#writer, { complete });
    // A complete image reads as zeroes where nothing is stored, so zero runs are left out.
    const listed = outcomes.filter(({ run }) => !complete || run.kind !== "zero");
    let bytes = 0;
    for (const { run, digests } of listed) {
      bytes += dataBytesOf(run, this.#writer.geometry);
      this.#digests?.add(run, digests);
    }
    this.#dataBytes += bytes;
    journal?.add(
      {
        runs: listed.map(({ run }) => ({ ...run, hostOffset: 0 })),
        // The threads' buffer has those of all clusters of the segment.
        digests: Buffer.concat(listed.map(({ digests }) => digests)),
        position: endOfRuns(outcomes.map(({ run }) => run)),
        sizes: this.#writer.sizesFrom(first),
      },
      bytes,
    );
    // Elsewhere, what was stored may still be on its way.
    await this.#writer.capacity();
    if (buffer.byteLength > 0) this.#buffers.give(buffer);
  }

  /** Enters what an earlier run has stored. */
  #keep({ runs, digests, sizes }: JournalEntry): void {
    const { algorithm } = this.#options.digests ?? { algorithm: DEFAULT_DIGESTS };
    const { bytes } = DIGEST_ALGORITHMS[algorithm];
    let slot = 0;
    for (const run of runs) {
      const next = slot + slotsOf(run);
      this.#writer.keep(run, sizes.slice(slot, next));
      this.#digests?.add(run, digests.subarray(slot * bytes, next * bytes));
      this.#dataBytes += dataBytesOf(run, this.#writer.geometry);
      slot = next;
    }
  }

  /** Keeps the first failure. From here on no buffer is granted. */
  #fail(reason: unknown): void {
    this.#failure ??= { reason };
    this.#buffers.close(this.#failure.reason);
  }
}

/** Whether the file has the clusters of an entry: they are read back and compared with their digests. */
async function isThere(
  stored: StoredClusters,
  { runs, sizes, digests }: JournalEntry,
  digester: Digester,
  geometry: Geometry,
): Promise<boolean> {
  let at = 0;
  try {
    for await (const { run, cluster, bytes } of stored.read(runs, sizes)) {
      const one = run.kind === "partial" ? run : { kind: "data" as const, cluster, count: 1 };
      const digest = digestClusters(digester, one, bytes, geometry);
      if (!digest.equals(digests.subarray(at, at + digest.length))) return false;
      at += digest.length;
    }
  } catch (error) {
    if (error instanceof DamageError) return false;
    throw error;
  }
  return at === digests.length;
}

/**
 * Stores outcomes, which must come in guest order.
 * @param options.complete the image is a full copy, so zero runs are left out: gaps read as zeroes
 */
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
