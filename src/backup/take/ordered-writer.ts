import { BackupError } from "../base/errors.js";
import { ZEROES } from "../base/zeroes.js";
import type { Geometry } from "../image/image.js";
import { slottedRuns } from "../image/slots.js";
import { BufferPool } from "../pull/buffer-pool.js";
import { BufferedLanding } from "../pull/buffered-landing.js";
import type { Destination } from "../pull/pull.js";
import type { Segment } from "../pull/segment.js";

/** Takes bytes one after the other: a pipe, a socket, a file without a position. */
export interface ByteSink {
  /**
   * Resolves when the bytes were taken; they belong to the sink until then, and no other call comes before.
   */
  write(bytes: Uint8Array): Promise<void>;
}

/** A segment whose bytes have arrived, each cluster in its slot of the buffer. */
interface FilledSegment {
  readonly segment: Segment;
  readonly buffer: ArrayBuffer;
}

/** Default for the bytes that are read but not written yet. */
const BUFFER_BYTES = 16 * 1024 * 1024;
/** One that is filled, one that is written. */
const LEAST_BUFFERS = 2;
/**
 * Most segments that wait to be written. Those of zero runs have no buffer, so the buffers don't limit them.
 */
const MOST_WAITING = 64;

interface OrderedWriterOptions {
  readonly sink: ByteSink;
  readonly geometry: Geometry;
  /** Most bytes of clusters that a segment stores. */
  readonly segmentBytes: number;
  /** Bytes of all buffers; default 16 MiB. At least two segments. */
  readonly bufferBytes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Writes a whole disk to a sink, from its first byte to its last, zeroes included. Segments are read at the
 * same time, and wait for their turn in a bounded number of buffers:
 *
 *     plan -> buffer granted -> pieces land -> its turn: written, buffer free
 *
 * Buffers are granted in the order of the plan and come back in that order, so the segment whose turn it is
 * always has one. If the sink takes nothing, no more than the buffers is read.
 */
export class OrderedWriter implements Destination<Promise<FilledSegment>>, AsyncDisposable {
  readonly #sink: ByteSink;
  readonly #geometry: Geometry;
  readonly #buffers: BufferPool;
  readonly #signal: AbortSignal | undefined;
  /** Resolves when everything recorded so far is written or has failed; never rejects. */
  #tail: Promise<void> = Promise.resolve();
  /** Segments that were recorded and are not written. */
  #waiting = 0;
  #waiters: (() => void)[] = [];
  #failure: { readonly reason: unknown } | undefined;
  #writtenBytes = 0;

  constructor(options: OrderedWriterOptions) {
    const { sink, geometry, segmentBytes, bufferBytes = BUFFER_BYTES, signal } = options;
    this.#sink = sink;
    this.#geometry = geometry;
    this.#buffers = new BufferPool(
      segmentBytes,
      Math.max(LEAST_BUFFERS, Math.floor(bufferBytes / segmentBytes)),
    );
    this.#signal = signal;
    signal?.addEventListener("abort", this.#abort);
  }

  /** Bytes of the disk that the sink has taken. */
  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  async landing(segment: Segment, signal: AbortSignal): Promise<BufferedLanding<FilledSegment>> {
    // A segment of zero runs has no data, so its buffer is empty.
    const buffer = segment.clusters === 0 ? new ArrayBuffer(0) : await this.#buffers.take(signal);
    return new BufferedLanding(segment, this.#geometry, buffer, async (filled) => ({
      segment,
      buffer: filled,
    }));
  }

  /**
   * Waits while too many segments wait for the sink.
   * @throws the first failure of a write
   */
  async capacity(): Promise<void> {
    await this.#untilWaiting(MOST_WAITING - 1);
  }

  record(filled: Promise<FilledSegment>): void {
    this.#waiting += 1;
    this.#tail = this.#tail
      .then(async () => this.#write(await filled))
      .catch((reason: unknown) => this.#fail(reason));
  }

  async complete(): Promise<void> {
    await this.#untilWaiting(0);
  }

  /** From here on nothing is written. A write that the sink has not answered is not awaited. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#fail(new BackupError("E_FAILED", "the pull has ended"));
  }

  /** A sink that takes nothing must not keep an interrupted pull from ending. */
  readonly #abort = (): void => this.#fail(this.#signal?.reason);

  async #untilWaiting(most: number): Promise<void> {
    while (this.#waiting > most && this.#failure === undefined) {
      await new Promise<void>((resolve) => {
        this.#waiters.push(resolve);
      });
    }
    if (this.#failure !== undefined) throw this.#failure.reason;
  }

  /** Becomes the owner of the buffer, and gives it back to the pool. */
  async #write({ segment, buffer }: FilledSegment): Promise<void> {
    const { clusterSize, virtualSize } = this.#geometry;
    for (const { run, slot } of slottedRuns(segment.runs)) {
      const start = run.cluster * clusterSize;
      if (run.kind === "partial" || start !== this.#writtenBytes) {
        throw new RangeError("a disk that stands alone has no clusters that are clean");
      }
      const length = Math.min(run.count * clusterSize, virtualSize - start);
      if (run.kind === "zero") await this.#writeZeroes(length);
      else await this.#writeBytes(new Uint8Array(buffer, slot * clusterSize, length));
    }
    if (buffer.byteLength > 0) this.#buffers.give(buffer);
    this.#waiting -= 1;
    this.#wake();
  }

  async #writeZeroes(length: number): Promise<void> {
    for (let left = length; left > 0; left -= ZEROES.length) {
      await this.#writeBytes(ZEROES.subarray(0, Math.min(left, ZEROES.length)));
    }
  }

  async #writeBytes(bytes: Uint8Array): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure.reason;
    await this.#sink.write(bytes);
    this.#writtenBytes += bytes.length;
  }

  /** Keeps the first failure. From here on no buffer is granted. */
  #fail(reason: unknown): void {
    this.#failure ??= { reason };
    this.#buffers.close(this.#failure.reason);
    this.#wake();
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const resolve of waiters) resolve();
  }
}
