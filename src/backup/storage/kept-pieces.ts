/**
 * A piece of a file that was asked for, and may not have arrived yet. Its memory is used again when it is
 * forgotten.
 */
export interface KeptPiece {
  /** Offset in the file, in bytes. */
  readonly start: number;
  readonly length: number;
  /** The pieces of its file that are kept. */
  readonly owner: Set<KeptPiece>;
}

interface Piece extends KeptPiece {
  readonly memory: Buffer;
  readonly arrived: Promise<void>;
  /** Who is waiting for it or copies it, and the request that fills it. */
  users: number;
}

/** Memory is taken in these sizes, so that it fits pieces of other lengths later. */
const SMALLEST_MEMORY = 64 * 1024;

/**
 * The pieces of all files of a store that are kept in memory. The ones that were not read for the longest
 * time go first. Their memory is used again, since garbage collection took more than a third of a restore's
 * CPU time.
 */
export class KeptPieces {
  readonly #most: number;
  readonly #pieces = new Set<Piece>();
  /** Unused memory, by its size. */
  readonly #spare = new Map<number, Buffer[]>();
  #bytes = 0;

  /** @param most bytes; pieces that are being read may be beyond it */
  constructor(most: number) {
    this.#most = most;
  }

  /** @param fetch fills all of the piece */
  add(place: KeptPiece, fetch: (target: Buffer) => Promise<void>): KeptPiece {
    const memory = this.#memoryFor(place.length);
    const piece: Piece = { ...place, memory, arrived: fetch(memory.subarray(0, place.length)), users: 1 };
    piece.owner.add(piece);
    this.#pieces.add(piece);
    this.#bytes += memory.length;
    piece.arrived.then(
      () => this.#leave(piece),
      () => {
        // Whoever reads it is told. The next one asks again.
        this.forget(piece);
        this.#leave(piece);
      },
    );
    this.#shrink(piece);
    return piece;
  }

  /**
   * Waits for a piece and gives its bytes to `take`, which must not keep them.
   * @throws what the request for it has thrown
   */
  async read<T>(kept: KeptPiece, take: (bytes: Buffer) => T): Promise<T> {
    const piece = kept as Piece;
    piece.users += 1;
    if (this.#pieces.delete(piece)) this.#pieces.add(piece);
    try {
      await piece.arrived;
      return take(piece.memory.subarray(0, piece.length));
    } finally {
      this.#leave(piece);
    }
  }

  forget(kept: KeptPiece): void {
    const piece = kept as Piece;
    piece.owner.delete(piece);
    if (!this.#pieces.delete(piece)) return;
    this.#bytes -= piece.memory.length;
    this.#reuse(piece);
  }

  #leave(piece: Piece): void {
    piece.users -= 1;
    this.#reuse(piece);
  }

  /** Takes the memory of a piece that is forgotten and that nobody uses. */
  #reuse(piece: Piece): void {
    if (piece.users > 0 || this.#pieces.has(piece)) return;
    const spare = this.#spare.get(piece.memory.length) ?? [];
    this.#spare.set(piece.memory.length, spare);
    if (this.#bytes + this.#spareBytes() + piece.memory.length <= this.#most) spare.push(piece.memory);
  }

  #spareBytes(): number {
    return [...this.#spare].reduce((sum, [size, { length }]) => sum + size * length, 0);
  }

  #memoryFor(length: number): Buffer {
    let size = SMALLEST_MEMORY;
    while (size < length) size *= 2;
    const spare = this.#spare.get(size)?.pop();
    if (spare) return spare;
    for (const unused of this.#spare.values()) {
      while (unused.length > 0 && this.#bytes + this.#spareBytes() + size > this.#most) unused.pop();
    }
    return Buffer.allocUnsafeSlow(size);
  }

  #shrink(newest: Piece): void {
    for (const oldest of this.#pieces) {
      if (this.#bytes <= this.#most || oldest === newest) return;
      this.forget(oldest);
    }
  }
}
