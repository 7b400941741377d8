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
