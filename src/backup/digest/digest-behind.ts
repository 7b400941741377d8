import assert from "node:assert/strict";
import type { BackupError } from "../base/errors.js";
import { type ClusterRun, dataStretches, type Geometry } from "../image/image.js";
import type { DigestThreads } from "./digest-threads.js";

/** Questions in flight for each thread, so that a thread finds the next one when it has answered one. */
const QUESTIONS_AHEAD = 2;
/**
 * Small requests are combined into questions of about this many bytes, because a message between threads
 * costs as much as digesting a cluster or two.
 */
const QUESTION_BYTES = 8 * 1024 * 1024;
/** Bytes that may be written but not digested: they should still be in the page cache when they are read. */
const MAX_BEHIND = 128 * 1024 * 1024;

/** A call of `digest` that isn't answered. */
interface Waiting {
  /** As in `DigestQuestion`. */
  readonly stretches: readonly number[];
  /** Length of the stretches together. */
  readonly bytes: number;
  /** Number of digests. */
  readonly digests: number;
  resolve(digests: Buffer): void;
  reject(error: unknown): void;
}

/**
 * Computes the digests of a file while it is being written. Other threads read what is already written, from
 * the page cache. So the digests are of what was really stored, and the thread that owns the sockets only
 * sends questions.
 */
export class DigestBehind {
  readonly #path: string;
  readonly #threads: DigestThreads;
  #queue: Waiting[] = [];
  /** Questions that the threads haven't answered. */
  #inFlight = 0;
  /** Bytes for which `digest` was called and that aren't digested. */
  #behind = 0;
  #failure: { readonly reason: unknown } | undefined;
  /** Resolve the calls of `capacity` that wait. */
  #capacityWaiters: (() => void)[] = [];

  /** @param path the file, which must exist and may grow */
  constructor(path: string, threads: DigestThreads) {
    this.#path = path;
    this.#threads = threads;
  }

  /**
   * Waits until at most 128 MiB are written but not digested.
   * @throws {BackupError} a question failed, or `close` was called
   */
  async capacity(): Promise<void> {
    while (this.#behind > MAX_BEHIND && this.#failure === undefined) {
      await new Promise<void>((resolve) => {
        this.#capacityWaiters.push(resolve);
      });
    }
    if (this.#failure !== undefined) throw this.#failure.reason;
  }

  /**
   * The digests of the runs' stored clusters, one after the other. The clusters must have been written.
   * @throws {BackupError} the file can't be read, a thread ended, or `close` was called
   */
  digest(runs: readonly ClusterRun[], geometry: Geometry): Promise<Buffer> {
    const stretches: number[] = [];
    let bytes = 0;
    let digests = 0;
    const add = (position: number, length: number, unit: number): void => {
      stretches.push(position, length, unit);
      bytes += length;
      if (unit > 0) digests += Math.ceil(length / unit);
    };
    for (const run of runs) addStretches(run, geometry, add);
    if (digests === 0) return Promise.resolve(NONE);
    if (this.#failure !== undefined) return Promise.reject(this.#failure.reason);
    this.#behind += bytes;
    return new Promise((resolve, reject) => {
      this.#queue.push({ stretches, bytes, digests, resolve, reject });
      this.#ask();
    });
  }

  /**
   * Fails the calls of `digest` that weren't sent to a thread. Those that were sent end when the threads
   * answer. The threads stay open, because they belong to the caller.
   */
  close(reason: BackupError): void {
    this.#fail(reason);
    this.#threads.notify(this.#path);
  }

  #ask(): void {
    while (this.#inFlight < QUESTIONS_AHEAD * this.#threads.most && this.#queue.length > 0) {
      let count = 0;
      for (let bytes = 0; count < this.#queue.length && bytes < QUESTION_BYTES; count += 1) {
        bytes += this.#queue[count]?.bytes ?? 0;
      }
      const batch = this.#queue.slice(0, count);
      this.#queue = this.#queue.slice(count);
      this.#inFlight += 1;
      this.#threads
        .ask(this.#questionOf(batch))
        .then((digests) => this.#deliver(batch, digests))
        .catch((reason: unknown) => {
          for (const waiting of batch) waiting.reject(reason);
          this.#fail(reason);
        });
    }
  }

  #questionOf(batch: readonly Waiting[]) {
    return {
      path: this.#path,
      stretches: Float64Array.from(batch.flatMap(({ stretches }) => stretches)),
      digests: batch.reduce((sum, { digests }) => sum + digests, 0),
    };
  }

  #deliver(batch: readonly Waiting[], received: Buffer): void {
    this.#inFlight -= 1;
    const wanted = batch.reduce((sum, { digests }) => sum + digests * this.#threads.digestSize, 0);
    assert.equal(received.length, wanted, "the number of digests is not that of the clusters");
    let at = 0;
    for (const { bytes, digests, resolve } of batch) {
      const end = at + digests * this.#threads.digestSize;
      resolve(received.subarray(at, end));
      at = end;
      this.#behind -= bytes;
    }
    this.#ask();
    this.#wake();
  }

  #fail(reason: unknown): void {
    this.#failure ??= { reason };
    for (const waiting of this.#queue) waiting.reject(reason);
    this.#queue = [];
    this.#wake();
  }

  #wake(): void {
    const waiters = this.#capacityWaiters;
    this.#capacityWaiters = [];
    for (const resolve of waiters) resolve();
  }
}

const NONE = Buffer.alloc(0);

/** Adds the stored bytes of a run, cut off at the end of the disk. A partial run gets one digest. */
function addStretches(
  run: ClusterRun,
  geometry: Geometry,
  add: (position: number, length: number, unit: number) => void,
): void {
  const { clusterSize, virtualSize } = geometry;
  if (run.kind === "data") {
    const length = Math.min(run.count * clusterSize, virtualSize - run.cluster * clusterSize);
    add(run.hostOffset, length, clusterSize);
  } else if (run.kind === "partial") {
    const stretches = dataStretches(run, geometry);
    for (const [i, { offset, length }] of stretches.entries()) {
      const isLast = i === stretches.length - 1;
      add(run.hostOffset + offset, length, isLast ? clusterSize : 0);
    }
  }
}
