import { availableParallelism } from "node:os";
import { BackupError } from "../base/errors.js";
import type { FileFailure } from "../chain/proven-blocks.js";
import { ServiceThreads } from "../threads/service-threads.js";
import {
  type CopyAnswer,
  type CopyQuestion,
  CopyService,
  type ForgottenFile,
  type PiecesQuestion,
} from "./copy-service.js";

/**
 * Beside the calling thread, which helps. One thread writes while others read and digest: only one can write
 * to a file at a time. Each takes 10 to 25 MiB of memory.
 */
const MOST_THREADS = 2;
/** Questions that each thread has, so that it finds the next one when it has answered one. */
const QUESTIONS_AHEAD = 2;
/** Copying so many bytes takes no longer than starting threads, so the calling thread does it. */
const FEW_BYTES = 32 * 1024 * 1024;

/**
 * A question that took longer shows a slow disk or mount, on which the calling thread copies nothing more: it
 * has a reader's mark to renew, and signals to hear.
 */
const SLOW_MS = 1000;

/**
 * Threads that copy bytes from images and compare them with their digests. They read, digest and write while
 * the bytes are in the processor's cache. The caller only sends the places of the bytes. What the threads
 * have no time for is done by the calling thread, so there is one less than processors.
 */
export class CopyThreads extends ServiceThreads<CopyQuestion, CopyAnswer, ForgottenFile> {
  /** How many questions may be unanswered, so that the threads and the calling one have enough to do. */
  readonly ahead: number;

  /** @param bytes most bytes that will be copied */
  constructor(bytes: number) {
    const most = Math.max(1, Math.min(availableParallelism() - 1, MOST_THREADS));
    const forThreads = most * QUESTIONS_AHEAD;
    const own = new CopyService();
    let isSlow = false;
    super({
      script: "#copy-worker",
      most,
      sameThread: {
        answer: async (question) => {
          const began = performance.now();
          const answer = await own.answer(question);
          isSlow ||= performance.now() - began > SLOW_MS;
          return answer;
        },
        onNotice: async (path) => await own.onNotice(path),
        close: async () => await own.close(),
      },
      isForSameThread: bytes <= FEW_BYTES ? undefined : () => !isSlow && this.waiting >= forThreads,
      code: "E_COPY_THREAD",
      lost: "a thread that copies has ended",
      failed: "an image could not be copied",
      closed: "copying was cancelled",
    });
    this.ahead = forThreads + 1;
  }

  /**
   * Sends a question to a thread. Its digests are moved to the thread, and the caller can't use them
   * afterwards.
   * @returns one byte for each slot of the target, 1 if something was stored there; or the damage and its
   *   image
   * @throws {BackupError} the file system's error, with its code; or `E_COPY_THREAD`: a thread ended or
   *   failed
   */
  async ask(question: PiecesQuestion): Promise<Exclude<Done, { ended: true }>> {
    const answer = doneOf(await this.put(question, [question.digests.buffer]));
    if ("ended" in answer) throw new RangeError("a target has ended that was not asked to");
    return answer;
  }

  /**
   * Closes the target at `path`, to which all pieces have been copied.
   * @throws {BackupError} something that was written is lost, with the file system's code; or
   *   `E_COPY_THREAD`: a thread ended or failed
   */
  async end(path: string): Promise<void> {
    for (const answer of await this.putToAll({ end: path })) doneOf(answer);
  }
}

type Done = Exclude<CopyAnswer, { failure: FileFailure }>;

/** @throws {BackupError} the answer is a failure */
function doneOf(answer: CopyAnswer): Done {
  if (!("failure" in answer)) return answer;
  const { code, message, details } = answer.failure;
  throw new BackupError(code, message, { details: { ...details } });
}
