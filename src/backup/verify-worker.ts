/** Runs in a thread of its own: reads stretches of images and answers with what is wrong with them (`verify-threads.ts`). */
import { DamageList, type OnDamage } from "./damage.js";
import { createDigester, DIGEST_ALGORITHMS } from "./digest.js";
import { type Geometry, type ImageReader, slotsOf } from "./image/image.js";
import { Qcow2Reader } from "./image/qcow2-reader.js";
import { ProvenImage, type ProvenRun } from "./proven-image.js";
import { serve } from "./thread-service.js";
import type { ForgottenImage, ImageToVerify, VerifyAnswer, VerifyQuestion } from "./verify-threads.js";

/** Small enough to stay in the processor's cache between reading and digesting. */
const BLOCK = 256 * 1024;

/** By path. */
const images = new Map<string, Promise<ProvenImage>>();
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
    const image = images.get(path);
    images.delete(path);
    last = last.then(async () => (await image)?.close()).catch(() => undefined);
  },
});

async function lookAt({ image, runs, digests }: VerifyQuestion): Promise<VerifyAnswer> {
  const { geometry, algorithm } = image;
  const digestSize = algorithm === undefined ? 0 : DIGEST_ALGORITHMS[algorithm].bytes;
  const proven = await opened(image);
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

function opened(image: ImageToVerify): Promise<ProvenImage> {
  const known = images.get(image.path);
  if (known !== undefined) return known;
  const opening = open(image);
  images.set(image.path, opening);
  return opening;
}

async function open(image: ImageToVerify): Promise<ProvenImage> {
  const { geometry, algorithm } = image;
  const digester = algorithm === undefined ? undefined : await createDigester(algorithm);
  return new ProvenImage(await readerOf(image), geometry, digester);
}

async function readerOf({ path, format, geometry }: ImageToVerify): Promise<ImageReader> {
  switch (format) {
    case "qcow2":
      return await Qcow2Reader.open(path, { blocking: true });
    case "raw": {
      // It comes with all that reads maps, which most threads don't need.
      const { RawReader } = await import("./image/raw-reader.js");
      return await RawReader.open(path, { blocking: true, geometry });
    }
    default:
      return format satisfies never;
  }
}
