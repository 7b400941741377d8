import { availableParallelism } from "node:os";
import type { Damage } from "./damage.js";
import { BackupError } from "./errors.js";
import type { ClusterRun } from "./image/image.js";
import type { StoredImage } from "./proven-images.js";
import { reasonOf, ThreadPool } from "./thread-pool.js";

/** Bytes of an image that are to be copied. Offsets and lengths in bytes. */
export interface CopiedPiece {
  /** Which of the question's images they are in. */
  readonly image: number;
  /** The clusters that have them, whole ones: only those can be proven. */
  readonly run: Exclude<ClusterRun, { kind: "zero" }>;
  /** Where they begin on the disk. */
  readonly offset: number;
  readonly length: number;
  /** Where they go in the target file. */
  readonly to: number;
  /** Which slot of the target they begin in; its clusters' slots follow each other. */
  readonly slot: number;
}

export interface CopyQuestion {
  readonly images: readonly StoredImage[];
  readonly pieces: readonly CopiedPiece[];
  /** What the clusters of the pieces' runs must be, one after the other; none of images without digests. */
  readonly digests: Uint8Array<ArrayBuffer>;
  readonly target: CopyTarget;
}

/** A new file, which reads as zeroes where nothing was written. */
export interface CopyTarget {
  readonly path: string;
  readonly clusterSize: number;
  /** Clusters that pieces go to. */
  readonly slots: number;
}

export type CopyAnswer =
  /** For each slot, 0 where its bytes are all zeroes: nothing was written there. */
  | { readonly stored: Uint8Array<ArrayBuffer> }
  /** The first piece that is not what it should be; nothing of it was written. */
  | { readonly damage: Damage; readonly image: number }
  /** What the file system says of the target, or of an image. */
  | { readonly failure: CopyFailure };

export interface CopyFailure {
  readonly code: string;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

/** The file of this path is done with. */
export type ForgottenFile = string;

/** While one writes the other reads and digests: writers of one file take turns. Each takes 10 to 25 MiB. */
const MOST_THREADS = 2;

/**
 * Threads that copy out of images what their digests prove: read, digest and write while the bytes are in the
 * processor's cache. Whoever asks only tells them where things are.
 */
export class CopyThreads implements AsyncDisposable {
  readonly most = Math.min(availableParallelism(), MOST_THREADS);
  readonly #pool = new ThreadPool<CopyQuestion, CopyAnswer, ForgottenFile>({
    script: "#copy-worker",
    most: this.most,
    lost: (reason, cause) => problem(`a thread that copies has ended: ${reason}`, cause),
    failed: (failure) => problem(`an image could not be copied: ${reasonOf(failure)}`, failure),
  });

  /** Starts the threads, which takes them a while, before there is anything to ask. */
  start(): void {
    this.#pool.start();
  }

  /**
   * The question's digests belong to the thread from here on.
   * @returns for each slot of the target, whether anything was stored there; or what is damaged, in which of the images
   * @throws {BackupError} the file system's failure, with its code; or a thread has ended
   */
  async ask(question: CopyQuestion): Promise<Exclude<CopyAnswer, { failure: CopyFailure }>> {
    const answer = await this.#pool.ask(question, [question.digests.buffer]);
    if (!("failure" in answer)) return answer;
    const { code, message, details } = answer.failure;
    throw new BackupError(code, message, { details: { ...details } });
  }

  forget(path: string): void {
    this.#pool.tell(path);
  }

  /** Ends the threads; what was asked and isn't answered fails. May be called again. */
  close(): Promise<void> {
    return this.#pool.close(problem("the copying was given up"));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function problem(message: string, cause?: unknown): BackupError {
  return new BackupError("E_COPY_THREAD", message, { cause });
}
