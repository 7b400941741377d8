import type { Parameters } from "fast-check";

/** Time limit for shrinking a failed story, so that the seed is printed before the test times out. */
const LONGEST_MS = 150_000;

/**
 * Parameters for a property that runs for long: `runs` random stories. Repeat a failure with what fast-check
 * prints:
 *
 *     PROPERTY_SEED=-123 PROPERTY_PATH=4:1:0 npx vitest run test/property/chains.test.ts
 *
 * PROPERTY_RUNS sets the number of stories.
 */
export function propertyRuns(
  runs: number,
): Pick<Parameters<unknown>, "numRuns" | "seed" | "path" | "interruptAfterTimeLimit"> {
  const { PROPERTY_RUNS: more, PROPERTY_SEED: seed, PROPERTY_PATH: path } = process.env;
  return {
    numRuns: more === undefined ? runs : Number(more),
    interruptAfterTimeLimit: more === undefined ? LONGEST_MS : Number(more) * LONGEST_MS,
    ...(seed === undefined ? {} : { seed: Number(seed) }),
    ...(path === undefined ? {} : { path }),
  };
}

/**
 * The same for random tests without fast-check: the number of runs, and numbers from 0 to 1 that repeat for
 * the same seed. A failure's message must contain the seed.
 */
export function seededRuns(runs: number): {
  readonly runs: number;
  readonly seed: number;
  readonly random: () => number;
} {
  const { PROPERTY_RUNS: more, PROPERTY_SEED: given } = process.env;
  const seed = given === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(given);
  const next = uniformInts(seed);
  return { runs: more === undefined ? runs : Number(more), seed, random: () => next() / 2 ** 32 };
}

/** Mulberry32: small, and random enough to choose positions. */
function uniformInts(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}
