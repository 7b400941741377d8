/**
 * Runs in a thread of its own: reads stretches of a file and answers with their digests. What a stretch may be is told
 * in `digest-behind.ts`.
 */
import { openSync, readSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { createDigester } from "./digest.js";
import type { DigestAnswer, DigestQuestion, DigestWorkerData } from "./digest-behind.js";

/** Small enough to stay in the processor's cache between reading and digesting. */
const BLOCK = 256 * 1024;

const { path, algorithm } = workerData as DigestWorkerData;
const digester = await createDigester(algorithm);
const file = openSync(path, "r");
let buffer = Buffer.allocUnsafeSlow(BLOCK);

parentPort?.on("message", ({ id, stretches, digests }: DigestQuestion) => {
  parentPort?.postMessage(answer(id, stretches, digests));
});

function answer(id: number, stretches: Float64Array, count: number): DigestAnswer {
  const digests = Buffer.allocUnsafeSlow(count * digester.size);
  try {
    digestAll(stretches, digests);
    return { id, digests };
  } catch (error) {
    return { id, problem: error instanceof Error ? error.message : String(error) };
  }
}

function digestAll(stretches: Float64Array, digests: Buffer): void {
  let made = 0;
  /** Bytes of earlier stretches that belong to the next digest. */
  let gathered = 0;
  for (let i = 0; i < stretches.length; i += 3) {
    const position = stretches[i] as number;
    const length = stretches[i + 1] as number;
    const unit = stretches[i + 2] as number;
    if (unit === 0 || gathered > 0) {
      fill(position, gathered, length);
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
      fill(position + done, 0, block);
      for (let at = 0; at < block; at += unit) {
        digester.digestInto(buffer.subarray(at, Math.min(at + unit, block)), digests, made);
        made += digester.size;
      }
    }
  }
}

/** Reads into the buffer from `at` on, which grows where it has to. */
function fill(position: number, at: number, length: number): void {
  if (buffer.length < at + length) {
    const larger = Buffer.allocUnsafeSlow(at + length);
    buffer.copy(larger, 0, 0, at);
    buffer = larger;
  }
  for (let done = 0; done < length; ) {
    const count = readSync(file, buffer, at + done, length - done, position + done);
    if (count === 0)
      throw new Error(`${path} ends at byte ${position + done}, in the middle of what was stored`);
    done += count;
  }
}
