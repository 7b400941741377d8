const SHADES = [" ", "░", "▒", "▓", "█"] as const;

/**
 * Shows where some extents lie on a disk of `size` bytes, as one line of `columns` characters: a full block
 * for a stretch that they cover completely, a blank for one that they don't touch. Memory use doesn't depend
 * on their number.
 */
export class Picture {
  readonly #covered: Float64Array;
  /** Bytes per column. */
  readonly #width: number;

  constructor(size: number, columns: number) {
    this.#covered = new Float64Array(columns);
    this.#width = size / columns;
  }

  add(offset: number, length: number): void {
    const covered = this.#covered;
    const width = this.#width;
    const end = offset + length;
    const last = Math.min(covered.length - 1, Math.floor((end - 1) / width));
    for (let column = Math.min(covered.length - 1, Math.floor(offset / width)); column <= last; column += 1) {
      const inside = Math.min(end, (column + 1) * width) - Math.max(offset, column * width);
      covered[column] = (covered[column] ?? 0) + inside;
    }
  }

  toString(): string {
    return Array.from(this.#covered, (bytes) => shade(bytes / this.#width)).join("");
  }
}

function shade(part: number): string {
  if (!(part > 0)) return SHADES[0];
  return SHADES[Math.min(4, Math.max(1, Math.round(part * 4)))] ?? SHADES[4];
}
