const MIB = 1024 * 1024;
export const LEAST_PART = 8 * MIB;
/** S3 takes no larger ones. */
export const LARGEST_PART = 5 * 1024 * MIB;
/** S3 takes no more. */
export const MOST_PARTS = 10_000;
/** Some are left for a file that becomes longer than was expected. */
export const USUAL_PARTS = 9_500;
/** Parts that are cheap, before they grow: of a large disk with little in it there are no others. */
const CHEAP_PARTS = 3_000;
const GROWTH = 1.5;
/** Parts of each size that follow, if that suffices for the disk. */
const PARTS_OF_A_SIZE = 300;
/** The same of a disk of many TiB. The largest parts may not suffice for it; most are thin. */
const FEWEST_OF_A_SIZE = 200;

/** Bytes of all buffers of an upload. */
export const BUFFER_BYTES = 80 * MIB;
/** The first part, one that is being filled, the one before it, and one that is on its way. */
const NEEDED_AT_ONCE = 4;

/** Bytes of the buffers of one image that is uploaded alone: more gains nothing. */
const ONE_IMAGE_BUFFERS = 48 * MIB;

/**
 * Images that are uploaded side by side in 96 MiB: each takes 24 MiB at least, in three parts, and the digest
 * file beside it 8.
 */
export const MOST_IMAGES = 3;
/** The same where no digest file is uploaded beside its image. */
export const MOST_BARE_IMAGES = 4;

/**
 * Bytes of the buffers of an image. With those of the digest files of two disks, 8 MiB each, the images of two
 * take 96 MiB. Of four, each takes more than this: parts have 8 MiB at least, and there are three.
 * @param atOnce how many images are uploaded side by side
 */
export function imageBufferBytes(atOnce: number): number {
  return atOnce === 1 ? ONE_IMAGE_BUFFERS : Math.floor(BUFFER_BYTES / atOnce);
}

/** Bytes of a part that leaves room for the others that are in memory. */
export function cheapBytesOf({
  bufferBytes = BUFFER_BYTES,
}: {
  readonly bufferBytes?: number | undefined;
}): number {
  return Math.floor(bufferBytes / NEEDED_AT_ONCE / MIB) * MIB;
}

interface Step {
  /** Number of its first part, from 0. */
  readonly first: number;
  /** Where that begins in the file. */
  readonly start: number;
  /** Of each of its parts. */
  readonly bytes: number;
}

/** A part of an object, and the pieces that it has. */
export interface PlacedPart {
  /** From 1. */
  readonly number: number;
  /** Number of its first piece, from 0. */
  readonly first: number;
  readonly count: number;
}

/** How an object is cut into pieces, each of which is sent by one request, and which parts these make. */
export interface PieceLayout {
  readonly mostPieces: number;
  /** Number of the piece, from 0, that has the byte at `position`. */
  indexAt(position: number): number;
  /** Where a piece begins. */
  startOf(index: number): number;
  bytesOf(index: number): number;
  partOf(index: number): PlacedPart;
}

interface PartLayoutOptions {
  /** At most so many bytes are expected. */
  readonly mostBytes: number;
  /** Parts of more bytes come only behind many smaller ones; default: all parts have the same size. */
  readonly cheapBytes?: number | undefined;
}

/**
 * Where the parts of an upload begin. All have the same size if that is cheap. Otherwise they grow by and by,
 * so that 9,500 suffice for a long file, and memory follows what is stored rather than the size of the disk:
 *
 *     up to part    3,000    3,447    3,894   ...   6,129    9,500
 *     MiB of each      10       15       22   ...     163      244      two disks side by side, of 1 TiB
 */
export class PartLayout implements PieceLayout {
  readonly mostPieces = MOST_PARTS;
  readonly #steps: readonly Step[];

  constructor(options: PartLayoutOptions) {
    this.#steps = stepsOf(options);
  }

  indexAt(position: number): number {
    const { first, start, bytes } = this.#stepOf((step) => step.start <= position);
    return first + Math.floor((position - start) / bytes);
  }

  startOf(index: number): number {
    const { first, start, bytes } = this.#stepOf((step) => step.first <= index);
    return start + (index - first) * bytes;
  }

  bytesOf(index: number): number {
    return this.#stepOf((step) => step.first <= index).bytes;
  }

  /** Each piece is a part. */
  partOf(index: number): PlacedPart {
    return { number: index + 1, first: index, count: 1 };
  }

  #stepOf(isBehind: (step: Step) => boolean): Step {
    return this.#steps.findLast(isBehind) ?? (this.#steps[0] as Step);
  }
}

function stepsOf({ mostBytes, cheapBytes }: PartLayoutOptions): Step[] {
  const equal = Math.max(LEAST_PART, Math.ceil(mostBytes / USUAL_PARTS / MIB) * MIB);
  if (cheapBytes === undefined || equal <= Math.max(cheapBytes, LEAST_PART)) {
    return [{ first: 0, start: 0, bytes: Math.min(equal, LARGEST_PART) }];
  }
  const cheap = Math.max(cheapBytes, LEAST_PART);
  const { sizes, count } = grownSizes(cheap, mostBytes - CHEAP_PARTS * cheap);
  const steps: Step[] = [{ first: 0, start: 0, bytes: cheap }];
  let [first, start] = [CHEAP_PARTS, CHEAP_PARTS * cheap];
  for (const bytes of sizes) {
    steps.push({ first, start, bytes });
    first += count;
    start += count * bytes;
  }
  return steps;
}

/**
 * The sizes of the parts behind the cheap ones.
 * @returns `count` of each but the last; all that are left have that one
 */
function grownSizes(
  cheap: number,
  mostBytes: number,
): { readonly sizes: readonly number[]; readonly count: number } {
  const smaller: number[] = [];
  for (let largest = grown(cheap); ; largest = grown(largest)) {
    const saved = smaller.reduce((sum, bytes) => sum + largest - bytes, 0);
    const count = Math.floor(((USUAL_PARTS - CHEAP_PARTS) * largest - mostBytes) / saved);
    if (count >= PARTS_OF_A_SIZE || largest === LARGEST_PART) {
      return { sizes: [...smaller, largest], count: Math.max(count, FEWEST_OF_A_SIZE) };
    }
    smaller.push(largest);
  }
}

function grown(bytes: number): number {
  return Math.min(Math.floor((bytes * GROWTH) / MIB) * MIB, LARGEST_PART);
}
