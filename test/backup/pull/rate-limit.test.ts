import { describe, expect, it } from "vitest";
import { RateLimit } from "../../../src/backup/pull/rate-limit.js";

describe("a rate limit", () => {
  const never = new AbortController().signal;

  it("spreads the requests of several callers over time", async () => {
    const limit = new RateLimit(1_000_000);
    const started = performance.now();
    await Promise.all(Array.from({ length: 6 }, () => limit.take(100_000, never)));
    // The last turn comes after the five before it, less the credit.
    expect(performance.now() - started).toBeGreaterThan(350);
  });

  it("does not save up credit for a burst", async () => {
    const limit = new RateLimit(1_000_000);
    await new Promise((resolve) => setTimeout(resolve, 400));
    const started = performance.now();
    for (let i = 0; i < 5; i += 1) await limit.take(100_000, never);
    expect(performance.now() - started).toBeGreaterThan(250);
  });

  it("stops waiting when the work is aborted", async () => {
    const limit = new RateLimit(10);
    const stop = new AbortController();
    await limit.take(1000, stop.signal);
    const waiting = limit.take(1000, stop.signal);
    stop.abort(new Error("enough"));
    await expect(waiting).rejects.toThrow("enough");
  });
});
