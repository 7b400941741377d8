import { BackupError } from "../base/errors.js";
import type { FoundDamage } from "../chain/proven-blocks.js";
import { ServiceThreads } from "../threads/service-threads.js";
import { type MergeAnswer, type MergeQuestion, MergeService, type TakeQuestion } from "./merge-service.js";

/** Taking over so many bytes takes no longer than starting a thread, so the calling thread does it. */
const FEW_BYTES = 32 * 1024 * 1024;
/** Questions that the thread has, so that it finds the next one when it has answered one. */
const QUESTIONS_AHEAD = 2;

/**
 * Take over clusters of a merge: they read, digest and write. The caller only sends places. There is one
 * thread, and what it has no time for is done by the calling thread, which has little else to do.
 */
export class MergeThreads extends ServiceThreads<MergeQuestion, MergeAnswer> {
  /** How many questions may be unanswered, so that the thread and the calling one have enough to do. */
  readonly ahead = QUESTIONS_AHEAD + 1;

  /** @param bytes most bytes that will be taken over */
  constructor(bytes: number) {
    super({
      script: "#merge-worker",
      most: 1,
      sameThread: new MergeService(),
      isForSameThread: bytes <= FEW_BYTES ? undefined : () => this.waiting >= QUESTIONS_AHEAD,
      code: "E_MERGE_THREAD",
      lost: "a thread that merges has ended",
      failed: "clusters could not be merged",
      closed: "the merge was cancelled",
    });
  }

  /**
   * Sends a question to a thread. Its digests are moved to the thread, and the caller can't use them
   * afterwards.
   * @returns the damage, if there is any
   * @throws {BackupError} the file system's error, with its code; `E_LOCK_LOST`; or `E_MERGE_THREAD`: a
   *   thread ended or failed
   */
  async ask(question: TakeQuestion): Promise<FoundDamage | undefined> {
    return damageOf(await this.put(question, [question.digests.buffer]));
  }

  /**
   * Ends the work on a target, when all questions are answered: all that was written is flushed with `sync`,
   * and no file is open afterwards.
   * @throws {BackupError} something that was written is lost, with the file system's code; or
   *   `E_MERGE_THREAD`: a thread ended or failed
   */
  async end({ sync }: { readonly sync: boolean }): Promise<void> {
    for (const answer of await this.putToAll({ end: { sync } })) damageOf(answer);
  }
}

/** @throws {BackupError} the answer is a failure */
function damageOf(answer: MergeAnswer): FoundDamage | undefined {
  if ("done" in answer) return undefined;
  if (!("failure" in answer)) return answer;
  const { code, message, details } = answer.failure;
  throw new BackupError(code, message, { details: { ...details } });
}
