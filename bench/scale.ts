/** Bytes or pieces for a run of this scale: whole units, at least one. */
export function scaled(amount: number, scale: number, unit: number): number {
  return Math.max(Math.round((amount * scale) / unit), 1) * unit;
}
