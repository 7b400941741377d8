/** The script of the threads that digest-threads.ts starts. It reads stretches of files and digests them. */

import { closeSync, constants, openSync, readSync } from "node:fs";
import { workerData } from "node:worker_threads";
import { answerQuestions } from "../threads/thread-side.js";
import { createDigester } from "./digest.js";
import type { DigestQuestion, Digests, DigestWorkerData, ForgottenPath } from "./digest-threads.js";

/** Bytes of one read, small enough to stay in the processor's cache until they are digested. */
const BLOCK = 256 * 1024;

const digester = await createDigester((workerData as DigestWorkerData).algorithm);
/** Descriptors of open files, by path. */
const files = new Map<string, number>();
let buffer = Buffer.allocUnsafeSlow(BLOCK);

answerQuestions<DigestQuestion, Digests, ForgottenPath>({
  answer: (question) => {
    const digests = Buffer.from(new ArrayBuffer(question.digests * digester.size));
    digestAll(question, digests);
    return digests;
  },
  transfer: (digests) => [digests.buffer],
  onNotice: (path) => {
    const file = files.get(path);
    files.delete(path);
    if (file !== undefined) closeSync(file);
  },
});

/** The file's descriptor. The file stays open until a notice names it. */
function open(path: string): number {
  const file = files.get(path) ?? openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  files.set(path, file);
  return file;
}

function digestAll({ path, stretches }: DigestQuestion, digests: Buffer): void {
  const file = open(path);
  /** Bytes of `digests` that are filled. */
  let made = 0;
  /** Bytes of earlier stretches, with unit 0, that belong to the next digest. */
  let gathered = 0;
  for (let i = 0; i < stretches.length; i += 3) {
    const position = stretches[i] as number;
    const length = stretches[i + 1] as number;
    const unit = stretches[i + 2] as number;
    if (unit === 0 || gathered > 0) {
      fill(file, position, gathered, length);
      gathered += length;
      if (unit === 0) continue;
      digester.digestInto(buffer.subarray(0, gathered), digests, made);
      made += digester.size;
      gathered = 0;
      continue;
    }
    const step = Math.max(unit, BLOCK - (BLOCK % unit));
    for (let done = 0; done < length; done += step) {
      const block = Math.min(step, length - done);
      fill(file, position + done, 0, block);
      for (let at = 0; at < block; at += unit) {
        digester.digestInto(buffer.subarray(at, Math.min(at + unit, block)), digests, made);
        made += digester.size;
      }
    }
  }
}

/**
 * Reads `length` bytes from `position` of the file into the buffer, from byte `at` of the buffer on. The
 * buffer grows if necessary, and keeps the bytes before `at`.
 */
function fill(file: number, position: number, at: number, length: number): void {
  if (buffer.length < at + length) {
    const larger = Buffer.allocUnsafeSlow(at + length);
    buffer.copy(larger, 0, 0, at);
    buffer = larger;
  }
  for (let done = 0; done < length; ) {
    const count = readSync(file, buffer, at + done, length - done, position + done);
    if (count === 0)
      throw new Error(`the file ends at byte ${position + done}, in the middle of the stored data`);
    done += count;
  }
}
