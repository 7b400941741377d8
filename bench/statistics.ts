/** What the figures of a few runs allow to be said, and what they don't. Pure. */

export interface Spread {
  /** How many values, or pairs of them. */
  readonly count: number;
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

export function spreadOf(values: readonly number[]): Spread {
  return { count: values.length, median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

/**
 * The ratios of runs made side by side, round by round. Disturbances by the machine affect both runs of a
 * round, so their ratio is steadier than that of the two medians.
 */
export function pairwiseRatios(values: readonly number[], references: readonly number[]): Spread {
  const pairs = Math.min(values.length, references.length);
  return spreadOf(
    Array.from({ length: pairs }, (_, round) => (values[round] ?? 0) / (references[round] ?? 0)),
  );
}

/** "open": too few rounds to tell. */
export type Verdict = "less" | "more" | "none" | "open";

/** So many rounds that agree by chance do so in one case of 16. */
export const ENOUGH_ROUNDS = 5;

/**
 * A difference counts only if every round shows it: if 1 lies between the smallest and largest ratio, there
 * is none.
 */
export function verdictOf(ratios: Spread): Verdict {
  if (ratios.count < ENOUGH_ROUNDS) return "open";
  if (ratios.max < 1) return "less";
  if (ratios.min > 1) return "more";
  return "none";
}

/** Two sets of runs not made side by side differ only if one ends before the other begins. */
export function verdictBetween(before: Spread, after: Spread): Verdict {
  if (Math.min(before.count, after.count) < ENOUGH_ROUNDS) return "open";
  if (after.max < before.min) return "less";
  if (after.min > before.max) return "more";
  return "none";
}

export type Standing = "met" | "missed" | "undecided" | "too few runs";

/** A target is met or missed where every round says so, and undecided where some do and others don't. */
export function standingOf(value: Spread, atMost: number): Standing {
  if (value.count < ENOUGH_ROUNDS) return "too few runs";
  if (value.max <= atMost) return "met";
  return value.min <= atMost ? "undecided" : "missed";
}

/** A bound that no run may pass, as that of memory: one run that does is enough to miss it. */
export function standingOfAll(value: Spread, atMost: number): Standing {
  if (value.max > atMost) return "missed";
  return value.count < ENOUGH_ROUNDS ? "too few runs" : "met";
}
