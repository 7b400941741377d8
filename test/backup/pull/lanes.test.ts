import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { type LaneOptions, runLanes } from "../../../src/backup/pull/lanes.js";
import type { Segment } from "../../../src/backup/pull/segment.js";

const segment = (index: number): Segment => ({ index, runs: [], firstRank: 0, clusters: 0 });

/** A plan of `count` segments, which then fails or ends. */
async function* plan(count: number, failure?: Error): AsyncGenerator<Segment> {
  for (let index = 0; index < count; index += 1) yield segment(index);
  if (failure) throw failure;
}

/** Runs lanes, and keeps what was recorded. */
async function run(
  options: Pick<LaneOptions<number>, "segments" | "store"> & Partial<LaneOptions<number>>,
): Promise<{ recorded: number[]; completed: boolean; error: unknown }> {
  const result = { recorded: [] as number[], completed: false, error: undefined as unknown };
  const recorder = {
    capacity: async () => {},
    record: (outcome: number) => {
      result.recorded.push(outcome);
    },
    complete: async () => {
      result.completed = true;
    },
  };
  await runLanes({ recorder, lanes: () => 2, ...options }).catch((error: unknown) => {
    result.error = error;
  });
  return result;
}

describe("lanes over one plan", () => {
  it("record outcomes in guest order, whichever segment ends first", async () => {
    const { recorded, completed } = await run({
      segments: plan(6),
      store: async ({ index }) => {
        await sleep(index % 2 === 0 ? 10 : 1);
        return { outcome: index, readBytes: 1 };
      },
    });
    expect(recorded).toEqual([0, 1, 2, 3, 4, 5]);
    expect(completed).toBe(true);
  });

  it("are aborted if the plan fails", async () => {
    let stopped = false;
    const { completed, error } = await run({
      segments: plan(1, new Error("the digest file is damaged")),
      store: async ({ index }, signal) => {
        await sleep(1000, undefined, { signal }).catch(() => {
          stopped = true;
          throw new Error("the disk is full");
        });
        return { outcome: index, readBytes: 1 };
      },
    });
    expect(error).toEqual(new Error("the digest file is damaged"));
    expect([stopped, completed]).toEqual([true, false]);
  });

  it("throw the signal's reason if it fires", async () => {
    const controller = new AbortController();
    const { error } = await run({
      segments: plan(10),
      signal: controller.signal,
      store: async ({ index }, signal) => {
        if (index === 3) controller.abort(new Error("Ctrl-C"));
        await sleep(1, undefined, { signal }).catch(() => {
          throw new Error("the connection was closed");
        });
        return { outcome: index, readBytes: 1 };
      },
    });
    expect(error).toEqual(new Error("Ctrl-C"));
  });

  it("throw the plan's error, not a later one of a segment that outlives the plan", async () => {
    const { error } = await run({
      segments: plan(1, new Error("the digest file is damaged")),
      outlivesPlan: true,
      store: async () => {
        await sleep(20);
        throw new Error("the disk is full");
      },
    });
    expect(error).toEqual(new Error("the digest file is damaged"));
  });

  it("finish the segments under way if they outlive the plan", async () => {
    const finished: number[] = [];
    const { completed, error } = await run({
      outlivesPlan: true,
      segments: plan(2, new Error("the digest file is damaged")),
      store: async ({ index }, signal) => {
        await sleep(index === 0 ? 1 : 50);
        signal.throwIfAborted();
        finished.push(index);
        return { outcome: index, readBytes: 1 };
      },
    });
    expect(finished).toEqual([0, 1]);
    expect(error).toEqual(new Error("the digest file is damaged"));
    expect(completed).toBe(false);
  });

  it("stop if a segment fails, and throw its error after the others have stopped", async () => {
    let stopped = false;
    const { completed, error } = await run({
      segments: plan(10),
      store: async ({ index }, signal) => {
        if (index === 1) throw new Error("no space");
        await sleep(1000, undefined, { signal }).catch(() => {
          stopped = true;
        });
        signal.throwIfAborted();
        return { outcome: index, readBytes: 1 };
      },
    });
    expect(error).toEqual(new Error("no space"));
    expect([stopped, completed]).toEqual([true, false]);
  });

  it("are started as the number of lanes grows", async () => {
    let lanes = 1;
    let [underWay, most] = [0, 0];
    await run({
      segments: plan(8),
      lanes: () => lanes,
      store: async ({ index }) => {
        underWay += 1;
        most = Math.max(most, underWay);
        await sleep(5);
        underWay -= 1;
        lanes = 3;
        return { outcome: index, readBytes: 1 };
      },
    });
    expect(most).toBe(3);
  });
});
