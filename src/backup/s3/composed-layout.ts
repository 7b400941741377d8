import {
  LARGEST_PART,
  LEAST_PART,
  MOST_PARTS,
  type PieceLayout,
  type PlacedPart,
  USUAL_PARTS,
} from "./part-layout.js";

const MIB = 1024 * 1024;
/** Parts that are composed have at least so many bytes: a copy costs some requests more than it saves. */
const LEAST_COMPOSED = 512 * MIB;
/** At least so many parts are sent as they are, so that nothing is copied of a thin disk. */
const FEWEST_PLAIN = 3_000;
/** The same of a disk that the largest parts do not suffice for. */
const FEWEST_OF_HUGE = 500;

interface ComposedSizes {
  /** Bytes of what is sent by one request, but for the last one. */
  readonly pieceBytes: number;
  /** How many parts at the front have one piece. */
  readonly plainParts: number;
  /** How many pieces the others have. */
  readonly piecesOfAPart: number;
}

/**
 * Where the pieces of an upload begin whose later parts are larger than what memory holds: each of them is
 * made of several pieces. All pieces have the same size.
 *
 *     pieces   |  |  |  |  |  |  |  |  |  |  |  |  |
 *     parts    |  |  |  |  |           |           |
 */
export class ComposedLayout implements PieceLayout {
  readonly plainParts: number;
  readonly #pieceBytes: number;
  readonly #piecesOfAPart: number;

  constructor({ pieceBytes, plainParts, piecesOfAPart }: ComposedSizes) {
    this.plainParts = plainParts;
    this.#pieceBytes = pieceBytes;
    this.#piecesOfAPart = piecesOfAPart;
  }

  /** Whether parts of `cheapBytes`, or of 8 MiB, do not suffice. */
  static isNeeded(mostBytes: number, cheapBytes: number): boolean {
    return mostBytes > USUAL_PARTS * Math.max(LEAST_PART, cheapBytes);
  }

  /**
   * @param mostBytes that are expected; of more than 46 TiB, as much as there can be
   * @param cheapBytes that a piece may have
   */
  static of(mostBytes: number, cheapBytes: number): ComposedLayout {
    const pieceBytes = Math.max(LEAST_PART, cheapBytes);
    const pieces = Math.ceil(mostBytes / pieceBytes);
    const most = Math.floor(LARGEST_PART / pieceBytes);
    const needed = Math.ceil((pieces - FEWEST_PLAIN) / (USUAL_PARTS - FEWEST_PLAIN));
    const piecesOfAPart = Math.min(most, Math.max(needed, Math.ceil(LEAST_COMPOSED / pieceBytes)));
    const plain = Math.floor((USUAL_PARTS * piecesOfAPart - pieces) / (piecesOfAPart - 1));
    return new ComposedLayout({ pieceBytes, plainParts: Math.max(FEWEST_OF_HUGE, plain), piecesOfAPart });
  }

  get mostPieces(): number {
    return this.plainParts + (MOST_PARTS - this.plainParts) * this.#piecesOfAPart;
  }

  /** Of the parts that are composed. */
  get partBytes(): number {
    return this.#piecesOfAPart * this.#pieceBytes;
  }

  indexAt(position: number): number {
    return Math.floor(position / this.#pieceBytes);
  }

  startOf(index: number): number {
    return index * this.#pieceBytes;
  }

  bytesOf(_: number): number {
    return this.#pieceBytes;
  }

  partOf(index: number): PlacedPart {
    if (index < this.plainParts) return { number: index + 1, first: index, count: 1 };
    const count = this.#piecesOfAPart;
    const composed = Math.floor((index - this.plainParts) / count);
    return { number: this.plainParts + composed + 1, first: this.plainParts + composed * count, count };
  }
}
