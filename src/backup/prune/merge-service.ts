import assert from "node:assert/strict";
import { BackupError } from "../base/errors.js";
import type { StoredImage } from "../chain/open-images.js";
import { answerOf, type FileFailure, type FoundDamage, ProvenBlocks } from "../chain/proven-blocks.js";
import { DIGEST_ALGORITHMS } from "../digest/algorithms.js";
import { existsNow } from "../host/durable-files.js";
import { ImageFile } from "../image/image-file.js";
import type { HolderMark } from "../repository/domain-lock.js";
import type { ThreadService } from "../threads/thread-pool.js";

/** Clusters side by side that a merge takes over, of an image with digests. */
export interface TakenRun {
  /** Index of the image among those of the question. */
  readonly image: number;
  /** In clusters of the image. */
  readonly cluster: number;
  readonly count: number;
  /** Where they are in the image, in bytes. */
  readonly from: number;
  /** Where they go in the target, in bytes; undefined: they are only compared with their digests. */
  readonly to: number | undefined;
}

/** Clusters to be taken over. */
export interface TakeQuestion {
  readonly images: readonly StoredImage[];
  readonly runs: readonly TakenRun[];
  /** Expected digests of the clusters of all runs, in order. */
  readonly digests: Uint8Array<ArrayBuffer>;
  /** Path of the image that takes the clusters; it exists. */
  readonly target: string;
  /** Of the lock's holder. */
  readonly mark: HolderMark;
}

/**
 * No more clusters come for the target: it is flushed with `sync`, and all files are closed. From the answer
 * on, the same paths may lead to other files.
 */
interface EndQuestion {
  readonly end: { readonly sync: boolean };
}

export type MergeQuestion = TakeQuestion | EndQuestion;

export type MergeAnswer =
  | { readonly done: true }
  /** Damaged clusters were not written, but others of the question were. */
  | FoundDamage
  /** About the target or an image, or the lock was lost. */
  | { readonly failure: FileFailure };

/** Compares clusters with their digests, and writes them to where the image that takes them has room. */
export class MergeService implements ThreadService<MergeQuestion, MergeAnswer, never> {
  readonly #images = new ProvenBlocks();
  #target: { readonly path: string; readonly file: ImageFile } | undefined;
  /** When this thread has last seen the lock's mark, by the wall clock. */
  #seen = 0;

  async answer(question: MergeQuestion): Promise<MergeAnswer> {
    try {
      if ("end" in question) await this.#end(question.end);
      else await this.#takeAll(question);
      return { done: true };
    } catch (error) {
      return answerOf(error);
    }
  }

  async close(): Promise<void> {
    const target = this.#target;
    this.#target = undefined;
    await target?.file.close();
    await this.#images.closeAll();
  }

  /** Network file systems may tell a failed write only to whoever wrote, when he flushes or closes. */
  async #end({ sync }: EndQuestion["end"]): Promise<void> {
    try {
      if (sync) await this.#target?.file.datasync();
    } finally {
      await this.close();
    }
  }

  async #takeAll({ images, runs, digests, target, mark }: TakeQuestion): Promise<void> {
    let rest = Buffer.from(digests.buffer);
    for (const { image, cluster, count, from, to } of runs) {
      const source = images[image] as StoredImage;
      const { clusterSize } = source.geometry;
      const size = source.algorithm === undefined ? 0 : DIGEST_ALGORITHMS[source.algorithm].bytes;
      const expected = rest.subarray(0, count * size);
      rest = rest.subarray(expected.length);
      const run = { kind: "data" as const, cluster, count, hostOffset: from, digests: expected };
      const file = to === undefined ? undefined : await this.#targetAt(target);
      const offset = cluster * clusterSize;
      await this.#images.read(source, image, run, { offset, length: count * clusterSize }, (at, bytes) => {
        if (file === undefined || to === undefined) return;
        this.#assertHeld(mark);
        file.writeNow(bytes, to + at - offset);
      });
    }
  }

  /** Like `assertHeld` of the lock: after a suspension, others may write to the target. */
  #assertHeld({ path, lookAgainMs }: HolderMark): void {
    const now = Date.now();
    if (Math.abs(now - this.#seen) < lookAgainMs) return;
    if (!existsNow(path)) {
      const message = "the lock was lost: another process may have taken it (was this one suspended?)";
      throw new BackupError("E_LOCK_LOST", message);
    }
    this.#seen = now;
  }

  async #targetAt(path: string): Promise<ImageFile> {
    this.#target ??= { path, file: await ImageFile.openForWriting(path) };
    assert(this.#target.path === path, "there are clusters for another target before the end");
    return this.#target.file;
  }
}
