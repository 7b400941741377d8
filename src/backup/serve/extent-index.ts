import { ALL_SUBCLUSTERS } from "../image/image.js";

/** Where the data of a piece is: the layer, and the place there of the cluster that the piece begins in. */
export interface ExtentSource {
  /** Number of the layer, counted from the top of the chain. */
  readonly layer: number;
  /** Offset of the cluster's slot in the image file. */
  readonly hostOffset: number;
  /** Offset of the cluster's digest in the digest file; meaningless if the layer has no digests. */
  readonly digestsAt: number;
  /** The subclusters that the layer defines as data; all of them for a piece of whole clusters. */
  readonly dataMask: number;
}

/** A stretch of the disk whose data is in one place; without a place it reads as zeroes. */
export interface IndexedExtent {
  readonly offset: number;
  readonly length: number;
  readonly place: ExtentSource | undefined;
}

/** Bytes of a cluster, and of a cluster's digest. */
export interface LayerUnits {
  readonly clusterSize: number;
  readonly digestSize: number;
}

/** Pieces are kept in chunks of typed arrays, so that adding pieces never copies old ones. */
const CHUNK_PIECES = 4096;

interface Chunk {
  /** For each piece: offset, hostOffset, digestsAt. */
  readonly numbers: Float64Array;
  /** For each piece: 0 for zeroes or the layer's number plus one, then dataMask. */
  readonly words: Uint32Array;
}

/**
 * Maps each byte of a disk to its place. The pieces are in ascending order without gaps, take 32 bytes each,
 * and are joined with a neighbour that they continue. Memory therefore grows with the disk's fragmentation,
 * not its size.
 *
 *     piece 0          piece 1      piece 2
 *     | layer 2, host  | zeroes     | layer 0, host  | ... end
 */
export class ExtentIndex {
  readonly #layers: readonly LayerUnits[];
  readonly #chunks: Chunk[] = [];
  #length = 0;
  #end = 0;

  /** @param layers top first */
  constructor(layers: readonly LayerUnits[]) {
    this.#layers = layers;
  }

  /** The byte after the last piece. */
  get end(): number {
    return this.#end;
  }

  /** Number of pieces. */
  get length(): number {
    return this.#length;
  }

  /** Adds the next `length` bytes of the disk. */
  append(length: number, place: ExtentSource | undefined): void {
    const offset = this.#end;
    this.#end += length;
    if (this.#length > 0 && this.#continues(offset, place)) return;
    const at = this.#length % CHUNK_PIECES;
    if (at === 0) {
      this.#chunks.push({
        numbers: new Float64Array(CHUNK_PIECES * 3),
        words: new Uint32Array(CHUNK_PIECES * 2),
      });
    }
    const { numbers, words } = this.#chunks[this.#chunks.length - 1] as Chunk;
    numbers.set([offset, place?.hostOffset ?? 0, place?.digestsAt ?? 0], at * 3);
    words.set(place ? [place.layer + 1, place.dataMask] : [0, 0], at * 2);
    this.#length += 1;
  }

  /** The pieces from `offset` to `end`, cut off at both ends; looked up lazily. */
  *extents(offset: number, end: number): Generator<IndexedExtent> {
    if (offset < 0 || end > this.#end) throw new RangeError(`${offset} to ${end} is not inside the disk`);
    if (offset >= end) return;
    let at = offset;
    for (let index = this.#indexOf(offset); at < end; index += 1) {
      const stop = Math.min(end, this.#endOf(index));
      yield { offset: at, length: stop - at, place: this.#placeAt(index, at) };
      at = stop;
    }
  }

  /** Whether a piece at `offset` with this place continues the last piece. */
  #continues(offset: number, place: ExtentSource | undefined): boolean {
    const expected = this.#placeAt(this.#length - 1, offset);
    if (!expected || !place) return expected === place;
    if (place.layer !== expected.layer || place.dataMask !== expected.dataMask) return false;
    // Each partly defined cluster has its own mask and digest, so such clusters are never joined.
    const last = this.#offsetOf(this.#length - 1);
    if (place.dataMask !== ALL_SUBCLUSTERS && this.#clustersBetween(place.layer, last, offset) > 0)
      return false;
    return place.hostOffset === expected.hostOffset && place.digestsAt === expected.digestsAt;
  }

  /** The place of the cluster that byte `offset` of piece `index` is in. */
  #placeAt(index: number, offset: number): ExtentSource | undefined {
    const { numbers, words } = this.#chunkOf(index);
    const at = index % CHUNK_PIECES;
    const number = words[at * 2] as number;
    if (number === 0) return undefined;
    const { clusterSize, digestSize } = this.#layers[number - 1] as LayerUnits;
    const clusters = this.#clustersBetween(number - 1, numbers[at * 3] as number, offset);
    return {
      layer: number - 1,
      hostOffset: (numbers[at * 3 + 1] as number) + clusters * clusterSize,
      digestsAt: (numbers[at * 3 + 2] as number) + clusters * digestSize,
      dataMask: words[at * 2 + 1] as number,
    };
  }

  #clustersBetween(layer: number, from: number, to: number): number {
    const { clusterSize } = this.#layers[layer] as LayerUnits;
    return Math.floor(to / clusterSize) - Math.floor(from / clusterSize);
  }

  /** The piece that byte `offset` is in. */
  #indexOf(offset: number): number {
    let low = 0;
    let high = this.#length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.#offsetOf(middle) <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #offsetOf(index: number): number {
    return this.#chunkOf(index).numbers[(index % CHUNK_PIECES) * 3] as number;
  }

  #endOf(index: number): number {
    return index + 1 < this.#length ? this.#offsetOf(index + 1) : this.#end;
  }

  #chunkOf(index: number): Chunk {
    return this.#chunks[Math.floor(index / CHUNK_PIECES)] as Chunk;
  }
}
