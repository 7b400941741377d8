import { describe, expect, it } from "vitest";
import { plan } from "../../../src/backup/pull/plan.js";
import { type Destination, type Landing, pull } from "../../../src/backup/pull/pull.js";
import type { Segment } from "../../../src/backup/pull/segment.js";
import { RequestWindow } from "../../../src/backup/pull/window.js";
import type { PieceSink, Stretch } from "../../../src/nbd/index.js";

const CLUSTER = 64 * 1024;

describe("the lanes of a pull", () => {
  const geometry = { virtualSize: 32 * CLUSTER, clusterSize: CLUSTER };
  async function* allData() {
    yield [{ offset: 0, length: geometry.virtualSize, state: "data" as const }];
  }
  const segments = () => plan(allData(), { geometry, segmentBytes: CLUSTER });
  const landing = (segment: Segment): Landing<number> => ({
    ranges: [{ offset: segment.index * CLUSTER, end: (segment.index + 1) * CLUSTER, slot: 0 }],
    firstByte: undefined,
    data: () => {},
    zeroes: () => {},
    outcome: () => segment.index,
  });
  class List implements Destination<number> {
    readonly noted: number[] = [];
    isComplete = false;
    landing: Destination<number>["landing"] = landing;
    async capacity(): Promise<void> {}
    record(index: number): void {
      this.noted.push(index);
    }
    async complete(): Promise<void> {
      this.isComplete = true;
    }
  }
  const random = { readPieces: () => new Promise<void>((resolve) => setTimeout(resolve, Math.random() * 4)) };
  const requestSizes = { readThrough: 0, mostRead: CLUSTER };
  const requestWindow = () => new RequestWindow({ inFlight: 4 * CLUSTER }, CLUSTER);

  it("record the outcomes of the segments in guest order", async () => {
    const notes = new List();
    await pull({
      source: random,
      segments: segments(),
      into: notes,
      window: requestWindow(),
      requestSizes,
    });
    expect(notes.noted).toEqual(Array.from({ length: 32 }, (_, at) => at));
    expect(notes.isComplete).toBe(true);
  });

  it("read a segment with a limit of its own in one request, whatever the general limit", async () => {
    const asked: number[] = [];
    const source = {
      async readPieces(stretches: readonly Stretch[]) {
        asked.push(...stretches.map(({ length }) => length / CLUSTER));
      },
    };
    const planned = plan(allData(), { geometry, segmentBytes: CLUSTER, firstSegmentBytes: 8 * CLUSTER });
    const whole = (segment: Segment): Landing<number> => {
      const first = segment.runs[0]?.cluster ?? 0;
      const places = [{ offset: first * CLUSTER, end: (first + segment.clusters) * CLUSTER, slot: 0 }];
      return { ...landing(segment), ranges: places };
    };
    const list = new List();
    list.landing = whole;
    const told: boolean[] = [];
    await pull({
      source,
      segments: planned,
      into: list,
      window: requestWindow(),
      requestSizes,
      onSegment: ({ segment }) => told.push(segment.mostRead !== undefined),
    });
    expect(asked).toEqual([8, ...Array.from({ length: 24 }, () => 1)]);
    expect(told.filter(Boolean)).toEqual([true]);
  });

  it("stop at the first failure, after all reads have ended", async () => {
    const notes = new List();
    let open = 0;
    const source = {
      async readPieces([stretch]: readonly Stretch[], _sink: PieceSink, { signal }: { signal: AbortSignal }) {
        open += 1;
        await new Promise((resolve) => setTimeout(resolve, 5));
        open -= 1;
        if (stretch?.offset === 9 * CLUSTER) throw new Error("ninth");
        signal.throwIfAborted();
      },
    };
    const pulling = pull({
      source,
      segments: segments(),
      into: notes,
      window: requestWindow(),
      requestSizes,
    });
    await expect(pulling).rejects.toThrow("ninth");
    expect([open, notes.isComplete, notes.noted.length < 10]).toEqual([0, false, true]);
  });

  it("stop when nothing more can be recorded", async () => {
    const notes = new List();
    notes.capacity = async () => {
      if (notes.noted.length > 5) throw new Error("no room");
    };
    const pulling = pull({
      source: random,
      segments: segments(),
      into: notes,
      window: requestWindow(),
      requestSizes,
    });
    await expect(pulling).rejects.toThrow("no room");
    expect(notes.isComplete).toBe(false);
  });

  it("finish their reads when the plan fails, and fail with the plan's error", async () => {
    let read = 0;
    const source = {
      async readPieces() {
        await new Promise((resolve) => setTimeout(resolve, 5));
        read += 1;
      },
    };
    async function* broken() {
      let count = 0;
      for await (const segment of segments()) {
        if (count++ === 6) throw new Error("no map");
        yield segment;
      }
    }
    const pulling = pull({
      source,
      segments: broken(),
      into: new List(),
      window: requestWindow(),
      requestSizes,
    });
    await expect(pulling).rejects.toThrow("no map");
    expect(read).toBe(6);
  });
});
