import type { Damage, OnDamage } from "../base/damage.js";
import type { DigestedRun } from "../chain/checked-image.js";
import type { Layer } from "../chain/layer.js";
import type { StoredImage } from "../chain/open-images.js";
import { storedRuns } from "../chain/stored-runs.js";
import { type ClusterRun, dataBytesOf } from "../image/image.js";
import type { VerifyAnswer } from "./verify-service.js";
import type { VerifyThreads } from "./verify-threads.js";

/**
 * Most bytes and runs of one question. Small runs are sent together, since a message costs as much as some
 * clusters.
 */
const QUESTION_BYTES = 4 * 1024 * 1024;
const QUESTION_RUNS = 512;
/** Questions per thread and image, so that the next one is ready when a thread has finished one. */
const QUESTIONS_AHEAD = 2;

interface VerifyDataOptions {
  readonly threads: VerifyThreads;
  readonly onDamage: OnDamage;
  /** Called with the number of data bytes that were checked. */
  readonly onBytes: (bytes: number) => void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Walks over a layer's tables and digest file, and has threads check the data. After a failure, everything
 * found until then has been reported to `onDamage`.
 *
 * @throws {DamageError} the walk can't go on
 */
export async function verifyData(
  layer: Layer,
  { threads, onDamage, onBytes, signal }: VerifyDataOptions,
): Promise<void> {
  const questions = new Questions(layer.stored, threads, onDamage, onBytes);
  try {
    for await (const run of storedRuns(layer, questions.tell)) {
      signal?.throwIfAborted();
      for (const piece of piecesOf(run, layer.geometry.clusterSize)) await questions.add(piece);
    }
  } finally {
    await questions.finish();
    threads.notify(layer.stored.path);
  }
}

function* piecesOf(run: DigestedRun, clusterSize: number): Generator<DigestedRun> {
  const most = Math.max(1, QUESTION_BYTES / clusterSize);
  if (run.count <= most) {
    yield run;
    return;
  }
  const digestSize = (run.digests?.length ?? 0) / run.count;
  for (let first = 0; first < run.count; first += most) {
    const count = Math.min(most, run.count - first);
    const digests = run.digests?.subarray(first * digestSize, (first + count) * digestSize);
    const cluster = run.cluster + first;
    if (run.kind === "zero") yield { kind: "zero", cluster, count, digests };
    else if (run.kind === "data")
      yield { kind: "data", cluster, count, hostOffset: run.hostOffset + first * clusterSize, digests };
  }
}

interface Asked {
  readonly answer: Promise<VerifyAnswer>;
  /** Damage that the walk itself found meanwhile. */
  readonly damages: readonly Damage[];
  readonly bytes: number;
}

/** Groups runs into questions, and passes the answers on in the order of the questions. */
class Questions {
  readonly #image: StoredImage;
  readonly #threads: VerifyThreads;
  readonly #onDamage: OnDamage;
  readonly #onBytes: (bytes: number) => void;
  readonly #asked: Asked[] = [];
  #damages: Damage[] = [];
  #runs: DigestedRun[] = [];
  #span = 0;

  constructor(
    image: StoredImage,
    threads: VerifyThreads,
    onDamage: OnDamage,
    onBytes: (bytes: number) => void,
  ) {
    this.#image = image;
    this.#threads = threads;
    this.#onDamage = onDamage;
    this.#onBytes = onBytes;
  }

  /** Notes damage that the walk itself has found. */
  readonly tell: OnDamage = (damage) => {
    this.#damages.push(damage);
  };

  async add(run: DigestedRun): Promise<void> {
    this.#runs.push(run);
    this.#span += run.count * this.#image.geometry.clusterSize;
    if (this.#span >= QUESTION_BYTES || this.#runs.length >= QUESTION_RUNS) await this.#ask();
  }

  /** Sends the last question, and waits for all answers. */
  async finish(): Promise<void> {
    await this.#ask();
    while (this.#asked.length > 0) await this.#takeFirst();
  }

  async #ask(): Promise<void> {
    while (this.#asked.length >= this.#threads.most * QUESTIONS_AHEAD) await this.#takeFirst();
    const runs = this.#runs;
    const question = { image: this.#image, runs: runs.map(withoutDigests), digests: joinedDigests(runs) };
    const answer = runs.length === 0 ? Promise.resolve([]) : this.#threads.ask(question);
    // A failure is thrown when this answer is taken; until then it must not count as unhandled.
    answer.catch(() => undefined);
    const bytes = runs.reduce((sum, run) => sum + dataBytesOf(run, this.#image.geometry), 0);
    this.#asked.push({ answer, damages: this.#damages, bytes });
    this.#runs = [];
    this.#damages = [];
    this.#span = 0;
  }

  async #takeFirst(): Promise<void> {
    const first = this.#asked.shift();
    if (first === undefined) return;
    for (const damage of [...first.damages, ...(await first.answer)]) this.#onDamage(damage);
    this.#onBytes(first.bytes);
  }
}

/** Drops the digests, because sending a view to a thread copies its whole buffer. */
function withoutDigests({ digests: _, ...run }: DigestedRun): ClusterRun {
  return run;
}

function joinedDigests(runs: readonly DigestedRun[]): Uint8Array<ArrayBuffer> {
  const length = runs.reduce((sum, { digests }) => sum + (digests?.length ?? 0), 0);
  const joined = new Uint8Array(length);
  let at = 0;
  for (const { digests } of runs) {
    if (digests === undefined) continue;
    joined.set(digests, at);
    at += digests.length;
  }
  return joined;
}
