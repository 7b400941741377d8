/** Runs in a thread of its own: reads stretches of images and answers with what is wrong with them (`verify-threads.ts`). */
import { DamageList, damageIn, type OnDamage } from "./damage.js";
import { DIGEST_ALGORITHMS } from "./digest.js";
import { type Geometry, slotsOf } from "./image/image.js";
import type { ProvenImage, ProvenRun } from "./proven-image.js";
import { ProvenImages } from "./proven-images.js";
import { serve } from "./thread-service.js";
import type { ForgottenImage, VerifyAnswer, VerifyQuestion } from "./verify-threads.js";

/** Small enough to stay in the processor's cache between reading and digesting. */
const BLOCK = 256 * 1024;

const images = new ProvenImages();
/** One question after the other, so that one buffer is enough: reading keeps this thread busy anyway. */
let last: Promise<unknown> = Promise.resolve();
let buffer = Buffer.allocUnsafeSlow(BLOCK);

serve<VerifyQuestion, VerifyAnswer, ForgottenImage>({
  answer: (question) => {
    const answer = last.then(() => lookAt(question));
    last = answer.catch(() => undefined);
    return answer;
  },
  heed: (path) => {
    last = last.then(() => images.close(path));
  },
});

async function lookAt({ image, runs, digests }: VerifyQuestion): Promise<VerifyAnswer> {
  const { geometry, algorithm } = image;
  const digestSize = algorithm === undefined ? 0 : DIGEST_ALGORITHMS[algorithm].bytes;
  let proven: ProvenImage;
  try {
    proven = await images.get(image);
  } catch (error) {
    // It was opened before, so it was changed meanwhile.
    const message = damageIn(error);
    if (message === undefined) throw error;
    return [{ message }];
  }
  const found = new DamageList(Number.POSITIVE_INFINITY);
  let rest = Buffer.from(digests.buffer);
  for (const run of runs) {
    const expected = rest.subarray(0, slotsOf(run) * digestSize);
    rest = rest.subarray(expected.length);
    await lookAtRun(proven, { ...run, digests: algorithm && expected }, geometry, found.note);
  }
  return found.list();
}

async function lookAtRun(
  image: ProvenImage,
  run: ProvenRun,
  { clusterSize, virtualSize }: Geometry,
  note: OnDamage,
): Promise<void> {
  const offset = run.cluster * clusterSize;
  const end = Math.min(offset + run.count * clusterSize, virtualSize);
  if (run.kind === "zero") {
    await image.expectZeroes(offset, end - offset, note);
    return;
  }
  if (buffer.length < clusterSize) buffer = Buffer.allocUnsafeSlow(clusterSize);
  for (let at = offset; at < end; at += buffer.length) {
    await image.read(run, at, buffer.subarray(0, Math.min(buffer.length, end - at)), note);
  }
}
