import { availableParallelism } from "node:os";
import { ServiceThreads } from "../threads/service-threads.js";
import {
  type ForgottenImage,
  type VerifyAnswer,
  type VerifyQuestion,
  VerifyService,
} from "./verify-service.js";

/** Each thread takes some 15 MiB; this many read as fast as memory allows. */
const MOST_THREADS = 16;
/** Starting threads takes as long as reading this many bytes. */
const FEW_BYTES = 24 * 1024 * 1024;

/** Reads from a store that are under way at the same time, and the bytes of each. */
const STORE_READS = 6;
const STORE_BLOCK = 4 * 1024 * 1024;

/** Threads that read images and compare them with their digests, one for each processor. */
export class VerifyThreads extends ServiceThreads<VerifyQuestion, VerifyAnswer, ForgottenImage> {
  /**
   * @param bytes the most bytes that will be read
   * @param isInStore whether the images are opened by the calling thread alone, as those of an object store
   *   are
   */
  constructor(bytes: number, isInStore = false) {
    const here = bytes <= FEW_BYTES ? new VerifyService() : undefined;
    super({
      script: "#verify-worker",
      most: isInStore ? STORE_READS : Math.min(availableParallelism(), MOST_THREADS),
      sameThread: isInStore ? new VerifyService(STORE_BLOCK) : here,
      atOnce: isInStore ? STORE_READS : 1,
      code: "E_VERIFY_THREAD",
      lost: "a thread that verifies has ended",
      failed: "an image could not be verified",
      closed: "verification was cancelled",
    });
  }

  /**
   * Sends a question to a thread. Its digests are transferred and can't be used afterwards.
   * @throws {BackupError} a thread has ended, or failed for a reason other than damage
   */
  ask(question: VerifyQuestion): Promise<VerifyAnswer> {
    return this.put(question, [question.digests.buffer]);
  }
}
