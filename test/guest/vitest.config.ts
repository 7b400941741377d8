import { defineConfig } from "vitest/config";

/** `npm run test:guest`: not among the tests of `npm run check`. */
export default defineConfig({
  test: {
    include: ["test/guest/*.trial.ts"],
    pool: "forks",
    // The tests are one story: each needs what those before it have made.
    bail: 1,
    hookTimeout: 480_000,
    testTimeout: 480_000,
    expect: { poll: { timeout: 60_000 } },
  },
});
