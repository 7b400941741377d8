import pLimit from "p-limit";
import type { Stretch } from "../../nbd/index.js";
import { BackupError } from "../base/errors.js";
import { isZero } from "../base/zeroes.js";
import type { Geometry } from "../image/image.js";
import { slottedRuns } from "../image/slots.js";
import { BufferPool } from "../pull/buffer-pool.js";
import { BufferedLanding } from "../pull/buffered-landing.js";
import type { Destination, Landing } from "../pull/pull.js";
import type { Segment } from "../pull/segment.js";
import type { BlockTarget } from "./block-target.js";

/** Default for the bytes that are read but not written yet. Enough for a far target. */
const BUFFER_BYTES = 16 * 1024 * 1024;
/** One that is filled, one that is written. */
const LEAST_BUFFERS = 2;
/**
 * Most segments that are being written. Those of zero runs have no buffer, so the buffers don't limit them.
 */
const MOST_UNDER_WAY = 64;
/**
 * Most bytes zeroed at a time. A server that must write the zeroes has to answer before it is taken for dead.
 */
const ZERO_PIECE = 64 * 1024 * 1024;
const ZEROES_AT_ONCE = 4;

interface TargetWriterOptions {
  readonly target: BlockTarget;
  readonly geometry: Geometry;
  /** Most bytes of clusters that a segment stores. */
  readonly segmentBytes: number;
  /** Bytes of all buffers; default 16 MiB. At least two segments. */
  readonly bufferBytes?: number | undefined;
}

/**
 * Writes a whole disk over a target's content, from byte 0 to the disk's end: data where it isn't zero, and
 * zeroes everywhere else. Segments are written at the same time and in any order, from a bounded number of
 * buffers.
 *
 *     plan -> buffer granted -> pieces land -> written, zeroed -> buffer free
 */
export class TargetWriter implements Destination<Promise<void>>, AsyncDisposable {
  readonly #target: BlockTarget;
  readonly #geometry: Geometry;
  readonly #buffers: BufferPool;
  readonly #underWay = new Set<Promise<void>>();
  readonly #zeroing = pLimit(ZEROES_AT_ONCE);
  #failure: { readonly reason: unknown } | undefined;
  #writtenBytes = 0;

  constructor({ target, geometry, segmentBytes, bufferBytes = BUFFER_BYTES }: TargetWriterOptions) {
    this.#target = target;
    this.#geometry = geometry;
    this.#buffers = new BufferPool(
      segmentBytes,
      Math.max(LEAST_BUFFERS, Math.floor(bufferBytes / segmentBytes)),
    );
  }

  /** Bytes of data that were written, without zeroes. */
  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  async landing(segment: Segment, signal: AbortSignal): Promise<Landing<Promise<void>>> {
    // A segment of zero runs has no data, so its buffer is empty.
    const buffer = segment.clusters === 0 ? new ArrayBuffer(0) : await this.#buffers.take(signal);
    return new BufferedLanding(segment, this.#geometry, buffer, (filled) =>
      this.#begin(this.#write(segment, filled, signal)),
    );
  }

  /**
   * Waits while too many segments are being written.
   * @throws the first failure of a write
   */
  async capacity(): Promise<void> {
    while (this.#underWay.size >= MOST_UNDER_WAY && this.#failure === undefined) {
      await Promise.race(this.#underWay);
    }
    if (this.#failure !== undefined) throw this.#failure.reason;
  }

  /** Does nothing: each segment is written when its bytes have arrived, in any order. */
  record(): void {}

  async complete(): Promise<void> {
    await Promise.all(this.#underWay);
    await this.capacity();
  }

  /** Waits for all writes in flight, so that no work outlives this object. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#fail(new BackupError("E_FAILED", "the restore has ended"));
    await Promise.all(this.#underWay);
  }

  /** @returns a promise that never rejects: `capacity` and `complete` report failures */
  #begin(writing: Promise<void>): Promise<void> {
    const done: Promise<void> = writing
      .catch((reason: unknown) => this.#fail(reason))
      .finally(() => this.#underWay.delete(done));
    this.#underWay.add(done);
    return done;
  }

  /** Keeps the first failure. From here on no buffer is granted. */
  #fail(reason: unknown): void {
    this.#failure ??= { reason };
    this.#buffers.close(this.#failure.reason);
  }

  /** Becomes the owner of the buffer, and gives it back to the pool after the writes. */
  async #write(segment: Segment, buffer: ArrayBuffer, signal: AbortSignal): Promise<void> {
    const { data, zeroes } = this.#sort(segment, buffer);
    const steps = data.map(({ offset, bytes }) => this.#target.write(offset, bytes, signal));
    const pieces = piecesOf(zeroes);
    for (let i = 0; i < ZEROES_AT_ONCE; i += 1) {
      steps.push(this.#zero(pieces, signal));
    }
    // No write may still use the buffer when the next segment gets it.
    for (const outcome of await Promise.allSettled(steps)) {
      if (outcome.status === "rejected") throw outcome.reason;
    }
    for (const { bytes } of data) this.#writtenBytes += bytes.length;
    if (buffer.byteLength > 0) this.#buffers.give(buffer);
  }

  /** Divides a segment into stretches of data, each of neighbouring clusters, and stretches of zeroes. */
  #sort(
    segment: Segment,
    buffer: ArrayBuffer,
  ): { data: { offset: number; bytes: Uint8Array }[]; zeroes: Stretch[] } {
    const { clusterSize, virtualSize } = this.#geometry;
    const data: { offset: number; bytes: Uint8Array }[] = [];
    const zeroes: Stretch[] = [];
    for (const { run, slot } of slottedRuns(segment.runs)) {
      if (run.kind === "partial") {
        throw new RangeError("a disk that stands alone has no clusters that are defined in part");
      }
      const start = run.cluster * clusterSize;
      const length = Math.min(run.count * clusterSize, virtualSize - start);
      if (run.kind === "zero") {
        zeroes.push({ offset: start, length });
        continue;
      }
      const bytes = new Uint8Array(buffer, slot * clusterSize, length);
      for (const { from, to, zero } of alike(bytes, clusterSize)) {
        if (zero) zeroes.push({ offset: start + from, length: to - from });
        else data.push({ offset: start + from, bytes: bytes.subarray(from, to) });
      }
    }
    return { data, zeroes };
  }

  async #zero(pieces: Iterator<Stretch>, signal: AbortSignal): Promise<void> {
    for (let next = pieces.next(); !next.done; next = pieces.next()) {
      const { offset, length } = next.value;
      await this.#zeroing(() => this.#target.zero(offset, length, signal));
    }
  }
}

function* piecesOf(stretches: readonly Stretch[]): Generator<Stretch> {
  for (const { offset, length } of stretches) {
    for (let done = 0; done < length; done += ZERO_PIECE) {
      yield { offset: offset + done, length: Math.min(ZERO_PIECE, length - done) };
    }
  }
}

/** Divides bytes into stretches of neighbouring clusters that are all zero, or all not zero. */
function* alike(
  bytes: Uint8Array,
  clusterSize: number,
): Generator<{ readonly from: number; readonly to: number; readonly zero: boolean }> {
  for (let from = 0; from < bytes.length; ) {
    const zero = isZero(bytes.subarray(from, from + clusterSize));
    let to = from + clusterSize;
    while (to < bytes.length && isZero(bytes.subarray(to, to + clusterSize)) === zero) to += clusterSize;
    to = Math.min(to, bytes.length);
    yield { from, to, zero };
    from = to;
  }
}
