/** How the runner keeps to a workload's time, with programs that do nothing but wait. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { Inputs } from "../../bench/inputs.js";
import { type Built, build } from "../../bench/measure.js";
import { runWorkload } from "../../bench/runner.js";
import type { Contender, Workload } from "../../bench/workload.js";
import { describeWith } from "../support/tools.js";

describeWith(["cc"], "a workload's time", () => {
  let folder: string;
  let built: Built;
  /** What the runner has said. */
  let said: string[];

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "bench-runner-"));
    built = await build(join(folder, "built"));
  });
  afterAll(async () => {
    await rm(folder, { recursive: true });
  });

  const sleeps = (name: string, seconds: number): Contender => ({
    name,
    needs: [],
    command: () => ({ program: "sleep", args: [String(seconds)] }),
    verify: async () => "by its exit code",
  });
  const workloadOf = (contenders: readonly Contender[], setUpMs = 0): Workload => ({
    name: "sleeping",
    title: "Sleeping",
    about: "Nothing is done.",
    reference: "first",
    contenders,
    targets: [],
    setUp: async () => {
      await new Promise((resolve) => setTimeout(resolve, setUpMs));
      return { sources: [], [Symbol.asyncDispose]: async () => undefined };
    },
  });
  const run = (workload: Workload, runs: number, limitMs: number) => {
    said = [];
    const inputs = new Inputs(join(folder, "inputs"), 1);
    const say = (what: string): void => void said.push(what);
    const takesPart = (): boolean => true;
    return runWorkload(workload, { folder, built, inputs, scale: 1, runs, limitMs, takesPart, say });
  };

  it("is as long as all rounds where they fit", async () => {
    const result = await run(workloadOf([sleeps("first", 0), sleeps("second", 0)]), 3, 60_000);
    expect(result.contenders.map(({ runs }) => runs.length)).toEqual([3, 3]);
    expect(result.rounds).toBeUndefined();
  });

  it("counts the inputs and the warm-up: nothing begins when it is over", async () => {
    const result = await run(workloadOf([sleeps("first", 0), sleeps("second", 0)], 300), 3, 200);
    expect(said).toEqual(["making the inputs"]);
    expect(result.contenders.map(({ runs }) => runs.length)).toEqual([0, 0]);
    expect(result.rounds).toBe(0);
  });

  it("has no place for a part of a round", async () => {
    // Two warm-ups and one run take longer than this, whatever the machine does beside.
    const slow = [sleeps("first", 0.5), sleeps("second", 0.5)];
    const result = await run(workloadOf(slow), 3, 1400);
    expect(said).not.toContain("round 1 of 3: second");
    expect(result.contenders.map(({ runs }) => runs.length)).toEqual([0, 0]);
    expect(result.rounds).toBe(0);
  });
});
