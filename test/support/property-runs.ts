import type { Parameters } from "fast-check";

/** A story that fails is shrunk no longer than that, so that the seed is printed before the test's own time is up. */
const LONGEST_MS = 150_000;

/**
 * How a property that takes long is run: `runs` random stories. What fast-check prints on a failure repeats it:
 *
 *     PROPERTY_SEED=-123 PROPERTY_PATH=4:1:0 npx vitest run test/property/chains.test.ts
 *
 * PROPERTY_RUNS asks for more stories, or fewer.
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
 * The same for what is random without fast-check: how many runs, and numbers from 0 up to 1 that are the same again for the
 * same seed. The seed belongs into what a failure says.
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

/** Mulberry32: small, and good enough to choose places. */
function uniformInts(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}
