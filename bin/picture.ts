const SHADES = [" ", "░", "▒", "▓", "█"] as const;

/**
 * Where on a disk of `size` bytes the extents lie, as one line of `columns` characters: a full block is a stretch
 * that they cover wholly, a blank one that they don't touch.
 */
export function picture(
  extents: readonly { readonly offset: number; readonly length: number }[],
  size: number,
  columns: number,
): string {
  const covered = new Array<number>(columns).fill(0);
  const width = size / columns;
  for (const { offset, length } of extents) {
    const end = offset + length;
    const last = Math.min(columns - 1, Math.floor((end - 1) / width));
    for (let column = Math.min(columns - 1, Math.floor(offset / width)); column <= last; column += 1) {
      const inside = Math.min(end, (column + 1) * width) - Math.max(offset, column * width);
      covered[column] = (covered[column] ?? 0) + inside;
    }
  }
  return covered.map((bytes) => shade(bytes / width)).join("");
}

function shade(part: number): string {
  if (!(part > 0)) return SHADES[0];
  return SHADES[Math.min(4, Math.max(1, Math.round(part * 4)))] ?? SHADES[4];
}
