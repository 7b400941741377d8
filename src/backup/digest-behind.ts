import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import type { DigestAlgorithm } from "./digest.js";
import { DIGEST_ALGORITHMS } from "./digest.js";
import { BackupError } from "./errors.js";
import type { ClusterRun, Geometry } from "./image/image.js";
import { dataStretches } from "./settle.js";

/** What a worker is started with. */
export interface DigestWorkerData {
  readonly path: string;
  readonly algorithm: DigestAlgorithm;
}

/**
 * Stretches of the file, three numbers each, bytes: position, length, unit. There is one digest for each `unit` bytes,
 * the last of a stretch being of what is left. With unit 0 a stretch is the beginning of what the next one goes on with.
 */
export interface DigestQuestion {
  readonly id: number;
  readonly stretches: Float64Array;
  /** How many digests they come to. */
  readonly digests: number;
}

export type DigestAnswer =
  | { readonly id: number; readonly digests: Uint8Array }
  | { readonly id: number; readonly problem: string };

/** More threads than that read no faster. */
const MAX_WORKERS = 4;
/** Questions that a worker has at a time: the next one lies ready when it is done with one. */
const QUESTIONS_AHEAD = 2;
/** Bytes of one question. Small ones are put together, since a message costs as much as digesting a cluster or two. */
const QUESTION_BYTES = 8 * 1024 * 1024;
/** What may be written and not digested yet: it should still be in the page cache when it is read. */
const MAX_BEHIND = 128 * 1024 * 1024;

interface Waiting {
  readonly stretches: readonly number[];
  readonly bytes: number;
  readonly digests: number;
  readonly resolve: (digests: Buffer) => void;
  readonly reject: (error: Error) => void;
}

interface Thread {
  readonly worker: Worker;
  readonly asked: Map<number, readonly Waiting[]>;
}

/**
 * Digests of a file that is still being written, by threads that read behind the write front: out of the page cache, and
 * so of what was really stored. The thread that owns the sockets only asks.
 */
export class DigestBehind {
  readonly #digestSize: number;
  readonly #threads: readonly Thread[];
  readonly #queue: Waiting[] = [];
  #behind = 0;
  #nextId = 0;
  #failure: Error | undefined;
  #roomWanted: (() => void)[] = [];

  /** @param path the file; it has to be there, and may go on growing */
  constructor(path: string, algorithm: DigestAlgorithm) {
    this.#digestSize = DIGEST_ALGORITHMS[algorithm].bytes;
    const script = createRequire(import.meta.url).resolve("#digest-worker");
    const count = Math.max(1, Math.min(availableParallelism() - 1, MAX_WORKERS));
    this.#threads = Array.from({ length: count }, () => this.#start(script, { path, algorithm }));
  }

  /** Resolves when what was asked for and isn't answered is little enough to go on. */
  async room(): Promise<void> {
    while (this.#behind > MAX_BEHIND && this.#failure === undefined) {
      await new Promise<void>((resolve) => {
        this.#roomWanted.push(resolve);
      });
    }
    if (this.#failure !== undefined) throw this.#failure;
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
    if (digests === 0) return Promise.resolve(Buffer.alloc(0));
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    this.#behind += bytes;
    return new Promise<Buffer>((resolve, reject) => {
      this.#queue.push({ stretches, bytes, digests, resolve, reject });
      this.#ask();
    });
  }

  /** Ends the threads; what was asked for and isn't answered fails. */
  async close(): Promise<void> {
    this.#fail(new BackupError("E_DIGEST_THREAD", "the digests were given up"));
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }

  #start(script: string, workerData: DigestWorkerData): Thread {
    const worker = new Worker(script, { workerData });
    const asked = new Map<number, readonly Waiting[]>();
    const thread = { worker, asked };
    worker.on("message", (answer: DigestAnswer) => this.#take(thread, answer));
    worker.on("error", (cause) =>
      this.#fail(new BackupError("E_DIGEST_THREAD", `the thread that digests failed: ${cause}`, { cause })),
    );
    worker.on("exit", () =>
      this.#fail(new BackupError("E_DIGEST_THREAD", "the thread that digests has ended")),
    );
    return thread;
  }

  #ask(): void {
    for (const thread of this.#threads) {
      while (thread.asked.size < QUESTIONS_AHEAD && this.#queue.length > 0) {
        const batch: Waiting[] = [];
        let bytes = 0;
        for (let next = this.#queue[0]; next && bytes < QUESTION_BYTES; next = this.#queue[0]) {
          batch.push(next);
          bytes += next.bytes;
          this.#queue.shift();
        }
        const id = this.#nextId++;
        thread.asked.set(id, batch);
        const stretches = Float64Array.from(batch.flatMap((waiting) => waiting.stretches));
        const digests = batch.reduce((sum, waiting) => sum + waiting.digests, 0);
        thread.worker.postMessage({ id, stretches, digests } satisfies DigestQuestion, [stretches.buffer]);
      }
    }
  }

  #take(thread: Thread, answer: DigestAnswer): void {
    const batch = thread.asked.get(answer.id) ?? [];
    thread.asked.delete(answer.id);
    if ("problem" in answer) {
      const error = new BackupError("E_DIGEST_READ", `digesting failed: ${answer.problem}`);
      for (const waiting of batch) waiting.reject(error);
      this.#fail(error);
      return;
    }
    const { buffer, byteOffset } = answer.digests;
    let at = byteOffset;
    for (const { bytes, digests, resolve } of batch) {
      const length = digests * this.#digestSize;
      resolve(Buffer.from(buffer, at, length));
      at += length;
      this.#behind -= bytes;
    }
    this.#ask();
    this.#wake();
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const { asked } of this.#threads) {
      for (const batch of asked.values()) for (const waiting of batch) waiting.reject(error);
      asked.clear();
    }
    for (const waiting of this.#queue.splice(0)) waiting.reject(error);
    this.#wake();
  }

  #wake(): void {
    const wanted = this.#roomWanted;
    this.#roomWanted = [];
    for (const resolve of wanted) resolve();
  }
}

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
    stretches.forEach(({ offset, length }, i) => {
      const isLast = i === stretches.length - 1;
      add(run.hostOffset + offset, length, isLast ? clusterSize : 0);
    });
  }
}
