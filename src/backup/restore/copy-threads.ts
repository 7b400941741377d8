import { availableParallelism } from "node:os";
import { BackupError } from "../base/errors.js";
import { ServiceThreads } from "../threads/service-threads.js";
import {
  type CopyAnswer,
  type CopyFailure,
  type CopyQuestion,
  CopyService,
  type ForgottenFile,
} from "./copy-service.js";

/** One thread writes while the other reads and digests: two can't write one file at once. Each takes 10 to 25 MiB. */
const MOST_THREADS = 2;
/** Copying this many bytes takes no longer than starting threads. */
const FEW_BYTES = 32 * 1024 * 1024;

/**
 * Threads that copy bytes from images which their digests prove: they read, digest and write while the bytes are
 * in the processor's cache. The caller only says where the bytes are.
 */
export class CopyThreads extends ServiceThreads<CopyQuestion, CopyAnswer, ForgottenFile> {
  /** @param bytes the most bytes that will be copied */
  constructor(bytes: number) {
    super({
      script: "#copy-worker",
      most: Math.min(availableParallelism(), MOST_THREADS),
      sameThread: bytes <= FEW_BYTES ? new CopyService() : undefined,
      code: "E_COPY_THREAD",
      lost: "a thread that copies has ended",
      failed: "an image could not be copied",
      closed: "the copying was given up",
    });
  }

  /**
   * Sends a question to a thread. Its digests are transferred and can't be used afterwards.
   * @returns for each slot of the target whether anything was stored there; or the damage, and its image
   * @throws {BackupError} the file system's failure, with its code; or a thread has ended
   */
  async ask(question: CopyQuestion): Promise<Exclude<CopyAnswer, { failure: CopyFailure }>> {
    const answer = await this.put(question, [question.digests.buffer]);
    if (!("failure" in answer)) return answer;
    const { code, message, details } = answer.failure;
    throw new BackupError(code, message, { details: { ...details } });
  }
}
