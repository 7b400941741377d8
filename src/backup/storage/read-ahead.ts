import type { KeptPiece, KeptPieces } from "./kept-pieces.js";

/** Requests for at least so many bytes are sent as they are. */
const LARGE_BYTES = 1024 * 1024;
/** A request for fewer bytes costs as much as one for these. */
const LEAST_BYTES = 64 * 1024;
/** Where reads follow one another, each request is twice as long as the one before it, up to this. */
const MOST_BYTES = 4 * 1024 * 1024;
/** A read that begins so many bytes behind the last one, or fewer, still follows it. */
const GAP_BYTES = 128 * 1024;

/** Fills all of `target` from `position`. */
export type Fetch = (target: Uint8Array, position: number) => Promise<void>;

/**
 * Reads a file by few requests, where each one costs as much as many bytes. Small reads that follow one
 * another are answered from memory: the first one asks for little, so that reads at random cost no more than
 * they must, and each further one for twice as much. Large reads are passed on. Any number of reads may be
 * under way.
 *
 *     reads      |a |b |c |d |e |f |g |  ...            |y |
 *     requests   |--|-----|-----------|----- ...        |--|
 */
export class ReadAhead {
  readonly #size: number;
  readonly #fetch: Fetch;
  readonly #kept: KeptPieces;
  /** The pieces of this file that are kept. */
  readonly #pieces = new Set<KeptPiece>();

  /** @param size of the file, in bytes */
  constructor(size: number, fetch: Fetch, kept: KeptPieces) {
    this.#size = size;
    this.#fetch = fetch;
    this.#kept = kept;
  }

  /**
   * Fills `target` from `position`, up to the end of the file.
   * @returns bytes read
   * @throws what `fetch` throws
   */
  async read(target: Uint8Array, position: number): Promise<number> {
    const length = Math.max(0, Math.min(target.length, this.#size - position));
    const bytes = Buffer.from(target.buffer, target.byteOffset, length);
    for (let done = 0; done < length; ) {
      const at = position + done;
      const known = this.#pieceAt(at);
      if (!known && length - done >= LARGE_BYTES) {
        await this.#fetch(bytes.subarray(done), at);
        break;
      }
      const piece = known ?? this.#ask(at, length - done);
      done += await this.#kept.read(piece, (found) => found.copy(bytes, done, at - piece.start));
    }
    return length;
  }

  /** Frees what is kept of this file. */
  forget(): void {
    for (const piece of [...this.#pieces]) this.#kept.forget(piece);
  }

  #pieceAt(position: number): KeptPiece | undefined {
    for (const piece of this.#pieces) {
      if (piece.start <= position && position < piece.start + piece.length) return piece;
    }
    return undefined;
  }

  #ask(start: number, wanted: number): KeptPiece {
    let length = Math.max(LEAST_BYTES, wanted);
    let next = this.#size;
    for (const piece of this.#pieces) {
      const end = piece.start + piece.length;
      if (end <= start && start - end <= GAP_BYTES) length = Math.max(length, 2 * piece.length);
      if (piece.start > start) next = Math.min(next, piece.start);
    }
    length = Math.min(length, Math.max(MOST_BYTES, wanted), next - start);
    return this.#kept.add({ start, length, owner: this.#pieces }, (target) => this.#fetch(target, start));
  }
}
