/** Runs in a thread of its own: copies out of images what their digests prove (`copy-threads.ts`). */
import type { CopiedPiece, CopyAnswer, CopyQuestion, ForgottenFile } from "./copy-threads.js";
import { type Damage, damageIn } from "./damage.js";
import { DIGEST_ALGORITHMS } from "./digest.js";
import { BackupError } from "./errors.js";
import { slotsOf } from "./image/image.js";
import { ImageFile } from "./image/image-file.js";
import type { ProvenImage, ProvenRun } from "./proven-image.js";
import { ProvenImages, type StoredImage } from "./proven-images.js";
import { serve } from "./thread-service.js";
import { isZero } from "./zeroes.js";

/** Small enough to stay in the processor's cache between reading, digesting and writing. */
const BLOCK = 256 * 1024;

const images = new ProvenImages();
/** By path. */
const targets = new Map<string, Promise<ImageFile>>();
/** One question after the other, so that one buffer is enough. */
let last: Promise<unknown> = Promise.resolve();
let buffer = Buffer.allocUnsafeSlow(BLOCK);

serve<CopyQuestion, CopyAnswer, ForgottenFile>({
  answer: (question) => {
    const answer = last.then(() => copyAll(question)).catch(answerOf);
    last = answer.catch(() => undefined);
    return answer;
  },
  heed: (path) => {
    last = last.then(async () => {
      await images.close(path);
      const target = targets.get(path);
      targets.delete(path);
      await target?.then((file) => file.close()).catch(() => undefined);
    });
  },
});

/** Ends a question. */
class Damaged extends Error {
  readonly damage: Damage;
  readonly image: number;

  constructor(damage: Damage, image: number) {
    super(damage.message);
    this.damage = damage;
    this.image = image;
  }
}

/** Errors lose their class and code on the way between threads. */
function answerOf(error: unknown): CopyAnswer {
  if (error instanceof Damaged) return { damage: error.damage, image: error.image };
  if (!(error instanceof BackupError)) throw error;
  return { failure: { code: error.code, message: error.message, details: error.details } };
}

async function copyAll({ images: sources, pieces, digests, target }: CopyQuestion): Promise<CopyAnswer> {
  const stored = new Uint8Array(target.slots);
  const file = await targetAt(target.path);
  let rest = Buffer.from(digests.buffer);
  for (const piece of pieces) {
    const source = sources[piece.image] as StoredImage;
    const { algorithm } = source;
    const size = algorithm === undefined ? 0 : DIGEST_ALGORITHMS[algorithm].bytes;
    const expected = rest.subarray(0, slotsOf(piece.run) * size);
    rest = rest.subarray(expected.length);
    const run: ProvenRun = { ...piece.run, digests: algorithm && expected };
    const image = await opened(source, piece.image);
    const { clusterSize } = source.geometry;
    await copyPiece(image, run, piece, clusterSize, (offset, bytes) => {
      store(file, piece, offset, bytes, target.clusterSize, stored);
    });
  }
  return { stored };
}

/** It was opened before: if it can't be now, it was changed meanwhile, and that is damage as well. */
async function opened(source: StoredImage, number: number): Promise<ProvenImage> {
  try {
    return await images.get(source);
  } catch (error) {
    const message = damageIn(error);
    throw message === undefined ? error : new Damaged({ message }, number);
  }
}

/** Reads a piece block by block, each made of whole clusters as far as the piece is. */
async function copyPiece(
  image: ProvenImage,
  run: ProvenRun,
  { offset, length, image: number }: CopiedPiece,
  clusterSize: number,
  take: (offset: number, bytes: Buffer) => void,
): Promise<void> {
  if (buffer.length < clusterSize) buffer = Buffer.allocUnsafeSlow(clusterSize);
  const block = buffer.length - (buffer.length % clusterSize);
  const end = offset + length;
  for (let at = offset; at < end; ) {
    const stop = Math.min(end, at - (at % clusterSize) + block);
    const bytes = buffer.subarray(0, stop - at);
    await image.read(run, at, bytes, (damage) => {
      throw new Damaged(damage, number);
    });
    take(at, bytes);
    at = stop;
  }
}

/** Writes the bytes from `offset` of the disk on, but for clusters in which they are all zeroes. */
function store(
  file: ImageFile,
  piece: CopiedPiece,
  offset: number,
  bytes: Buffer,
  clusterSize: number,
  stored: Uint8Array,
): void {
  const firstCluster = Math.floor(piece.offset / clusterSize);
  const write = (from: number, to: number): void => {
    if (from < to) file.writeNow(bytes.subarray(from, to), piece.to + offset - piece.offset + from);
  };
  let from = 0;
  for (let at = 0; at < bytes.length; ) {
    const cluster = Math.floor((offset + at) / clusterSize);
    const next = Math.min(bytes.length, (cluster + 1) * clusterSize - offset);
    if (isZero(bytes, at, next)) {
      write(from, at);
      from = next;
    } else stored[piece.slot + cluster - firstCluster] = 1;
    at = next;
  }
  write(from, bytes.length);
}

function targetAt(path: string): Promise<ImageFile> {
  const known = targets.get(path);
  if (known !== undefined) return known;
  const opening = ImageFile.openForWriting(path);
  targets.set(path, opening);
  return opening;
}
