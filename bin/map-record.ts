/** The text around the numbers of a record. ASCII only. */
export interface RecordLayout {
  readonly before: string;
  readonly between: string;
  readonly after: string;
  /** Numbers are padded with blanks on the left to this width. */
  readonly width: number;
}

/** ASCII digits of 0000 to 9999, four per number. */
const QUADS = Uint32Array.from({ length: 10_000 }, (_, n) => {
  const digit = (power: number): number => 48 + (Math.floor(n / power) % 10);
  return ((digit(1000) << 24) | (digit(100) << 16) | (digit(10) << 8) | digit(1)) >>> 0;
});

/**
 * Formats extents with the same flags as text. Consecutive ones differ only in digits, so the text is kept
 * and the digits are replaced; a string per extent would take several times as long for a million extents.
 * The parts of a record, here of the JSON form:
 *
 *     before   |\n  {\n    "offset": |
 *     offset   |1087892160512|
 *     between  |,\n    "length": |
 *     length   |65536|
 *     after    |,\n    "type": 1,\n    "description": "dirty"\n  },|
 */
export class MapRecord {
  readonly #layout: RecordLayout;
  #bytes = new Uint8Array(0);
  #view = new DataView(this.#bytes.buffer);
  /** The offset rounded down to a multiple of 10^8; NaN while it has at most eight digits. */
  #base = Number.NaN;
  #length = -1;
  /** Number of digits that fit. */
  #offsetDigits = 0;
  #lengthDigits = 0;
  /** Positions where the numbers end. */
  #offsetEnd = 0;
  #lengthEnd = 0;

  constructor(layout: RecordLayout) {
    this.#layout = layout;
  }

  /** Lent until the next call. */
  of(offset: number, length: number): Uint8Array {
    if (length !== this.#length) this.#putLength(length);
    const rest = offset - this.#base;
    if (rest >= 0 && rest < EIGHT_DIGITS) putEight(this.#view, this.#offsetEnd, rest);
    else this.#putOffset(offset);
    return this.#bytes;
  }

  #putLength(length: number): void {
    const digits = digitsOf(length);
    if (digits !== this.#lengthDigits) this.#makeRoom(this.#offsetDigits, digits);
    putDigits(this.#view, this.#lengthEnd, length);
    this.#length = length;
  }

  #putOffset(offset: number): void {
    const digits = digitsOf(offset);
    if (digits !== this.#offsetDigits) {
      this.#makeRoom(digits, this.#lengthDigits);
      putDigits(this.#view, this.#lengthEnd, this.#length);
    }
    putDigits(this.#view, this.#offsetEnd, offset);
    this.#base = offset < EIGHT_DIGITS ? Number.NaN : offset - (offset % EIGHT_DIGITS);
  }

  #makeRoom(offsetDigits: number, lengthDigits: number): void {
    const { before, between, after, width } = this.#layout;
    const untilOffset = before + "0".repeat(offsetDigits).padStart(width);
    const untilLength = untilOffset + between + "0".repeat(lengthDigits).padStart(width);
    this.#bytes = new TextEncoder().encode(untilLength + after);
    this.#view = new DataView(this.#bytes.buffer);
    this.#base = Number.NaN;
    this.#offsetEnd = untilOffset.length;
    this.#lengthEnd = untilLength.length;
    this.#offsetDigits = offsetDigits;
    this.#lengthDigits = lengthDigits;
  }
}

/** Decimal digits of a non-negative safe integer. */
function digitsOf(value: number): number {
  let digits = 1;
  for (let limit = 10; value >= limit; limit *= 10) digits += 1;
  return digits;
}

const EIGHT_DIGITS = 100_000_000;

/** Writes the digits of a non-negative safe integer before `end`. */
function putDigits(view: DataView, end: number, value: number): void {
  let at = end;
  let rest = value;
  if (value >= EIGHT_DIGITS) {
    // Exact for every safe integer.
    rest = Math.floor(value / EIGHT_DIGITS);
    putEight(view, end, value - rest * EIGHT_DIGITS);
    at -= 8;
  }
  do {
    const ten = (rest / 10) | 0;
    at -= 1;
    view.setUint8(at, 48 + rest - 10 * ten);
    rest = ten;
  } while (rest > 0);
}

/** Writes eight digits, including leading zeroes, before `end`. */
function putEight(view: DataView, end: number, value: number): void {
  const high = (value / 10_000) | 0;
  view.setUint32(end - 8, QUADS[high] ?? 0);
  view.setUint32(end - 4, QUADS[value - high * 10_000] ?? 0);
}
