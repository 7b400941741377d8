import assert from "node:assert/strict";

/** Sizes are kept in chunks of typed arrays, so that growing never copies. */
const CHUNK_SIZES = 64 * 1024;
/** Sizes below this fit into two bytes. */
const TWO_BYTES = 64 * 1024;

/** The lengths of an image's compressed streams, in two bytes each, or four if clusters exceed 64 KiB. */
export class SizeList {
  readonly #clusterSize: number;
  readonly #chunks: (Uint16Array | Uint32Array)[] = [];
  #length = 0;

  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
  }

  get length(): number {
    return this.#length;
  }

  /** Appends a size, which must be less than a cluster. */
  push(size: number): void {
    assert(size >= 0 && size < this.#clusterSize, `${size} is no size of a compressed cluster`);
    const at = this.#length % CHUNK_SIZES;
    if (at === 0) {
      const Sizes = this.#clusterSize <= TWO_BYTES ? Uint16Array : Uint32Array;
      this.#chunks.push(new Sizes(CHUNK_SIZES));
    }
    (this.#chunks[this.#chunks.length - 1] as Uint16Array | Uint32Array)[at] = size;
    this.#length += 1;
  }

  at(index: number): number {
    assert(index < this.#length);
    return this.#chunks[Math.floor(index / CHUNK_SIZES)]?.[index % CHUNK_SIZES] ?? 0;
  }
}
