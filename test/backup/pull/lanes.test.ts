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

  it("finish the segments under way if the plan fails, then throw the plan's error", async () => {
    const finished: number[] = [];
    const { completed, error } = await run({
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
