import assert from "node:assert/strict";
import type { BackupError } from "../base/errors.js";
import { type ClusterRun, dataStretches, type Geometry } from "../image/image.js";
import type { DigestThreads } from "./digest-threads.js";

/** Questions a thread under way at a time: the next one lies ready when it is done with one. */
const QUESTIONS_AHEAD = 2;
/** Bytes of one question. Small ones are put together, since a message costs as much as digesting a cluster or two. */
const QUESTION_BYTES = 8 * 1024 * 1024;
/** What may be written and not digested yet: it should still be in the page cache when it is read. */
const MAX_BEHIND = 128 * 1024 * 1024;

interface Waiting {
  readonly stretches: readonly number[];
  readonly bytes: number;
  readonly digests: number;
  resolve(digests: Buffer): void;
  reject(error: unknown): void;
}

/**
 * Digests of a file that is still being written, by threads that read behind the write front: out of the page cache, and
 * so of what was really stored. The thread that owns the sockets only asks.
 */
export class DigestBehind {
  readonly #path: string;
  readonly #threads: DigestThreads;
  #queue: Waiting[] = [];
  /** Questions that are with the threads. */
  #asked = 0;
  #behind = 0;
  #failure: { readonly reason: unknown } | undefined;
  #roomWanted: (() => void)[] = [];

  /** @param path the file; it has to be there, and may go on growing */
  constructor(path: string, threads: DigestThreads) {
    this.#path = path;
    this.#threads = threads;
  }

  /**
   * Resolves when what was asked for and isn't answered is little enough to go on.
   * @throws {BackupError} a question failed
   */
  async capacity(): Promise<void> {
    while (this.#behind > MAX_BEHIND && this.#failure === undefined) {
      await new Promise<void>((resolve) => {
        this.#roomWanted.push(resolve);
      });
    }
    if (this.#failure !== undefined) throw this.#failure.reason;
  }

  /**
   * The digests of the runs' stored clusters, one after the other.
   * @throws {BackupError} the file can't be read, or the thread has died
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

  /** What was asked for and isn't with a thread yet fails. The threads are their owner's, and answer for the rest. */
  close(reason: BackupError): void {
    this.#fail(reason);
    this.#threads.notify(this.#path);
  }

  #ask(): void {
    while (this.#asked < QUESTIONS_AHEAD * this.#threads.most && this.#queue.length > 0) {
      let count = 0;
      for (let bytes = 0; count < this.#queue.length && bytes < QUESTION_BYTES; count += 1) {
        bytes += this.#queue[count]?.bytes ?? 0;
      }
      const batch = this.#queue.slice(0, count);
      this.#queue = this.#queue.slice(count);
      this.#asked += 1;
      this.#threads.ask(this.#questionOf(batch)).then(
        (digests) => this.#take(batch, digests),
        (reason: unknown) => {
          for (const waiting of batch) waiting.reject(reason);
          this.#fail(reason);
        },
      );
    }
  }

  #questionOf(batch: readonly Waiting[]) {
    return {
      path: this.#path,
      stretches: Float64Array.from(batch.flatMap(({ stretches }) => stretches)),
      digests: batch.reduce((sum, { digests }) => sum + digests, 0),
    };
  }

  #take(batch: readonly Waiting[], made: Buffer): void {
    this.#asked -= 1;
    const wanted = batch.reduce((sum, { digests }) => sum + digests * this.#threads.digestSize, 0);
    assert.equal(made.length, wanted, "there is not one digest for each cluster");
    let at = 0;
    for (const { bytes, digests, resolve } of batch) {
      const end = at + digests * this.#threads.digestSize;
      resolve(made.subarray(at, end));
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
    const wanted = this.#roomWanted;
    this.#roomWanted = [];
    for (const resolve of wanted) resolve();
  }
}

const NONE = Buffer.alloc(0);

/** The stored bytes of a run, cluster by cluster, cut off at the end of the disk. */
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
