import { describe, expect, it } from "vitest";
import { plan, type Segment } from "../../../src/backup/pull/plan.js";
import { type Landing, type Notes, pull } from "../../../src/backup/pull/pull.js";
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
    places: [{ offset: segment.index * CLUSTER, end: (segment.index + 1) * CLUSTER, slot: 0 }],
    firstByte: undefined,
    data: () => {},
    zeroes: () => {},
    settle: () => segment.index,
  });
  class List implements Notes<number> {
    readonly noted: number[] = [];
    isComplete = false;
    async room(): Promise<void> {}
    note(index: number): void {
      this.noted.push(index);
    }
    async complete(): Promise<void> {
      this.isComplete = true;
    }
  }
  const random = { readPieces: () => new Promise<void>((resolve) => setTimeout(resolve, Math.random() * 4)) };
  const reading = { readThrough: 0, mostRead: CLUSTER };
  const pace = () => new RequestWindow({ inFlight: 4 * CLUSTER }, CLUSTER);

  it("note what came of the segments in guest order", async () => {
    const notes = new List();
    await pull({ source: random, segments: segments(), land: landing, notes, pace: pace(), reading });
    expect(notes.noted).toEqual(Array.from({ length: 32 }, (_, at) => at));
    expect(notes.isComplete).toBe(true);
  });

  it("ask for a segment that is to come at once by one request, whatever requests are like", async () => {
    const asked: number[] = [];
    const source = {
      async readPieces(stretches: readonly Stretch[]) {
        asked.push(...stretches.map(({ length }) => length / CLUSTER));
      },
    };
    const planned = plan(allData(), { geometry, segmentBytes: CLUSTER, atOnceBytes: 8 * CLUSTER });
    const whole = (segment: Segment): Landing<number> => {
      const first = segment.runs[0]?.cluster ?? 0;
      const places = [{ offset: first * CLUSTER, end: (first + segment.clusters) * CLUSTER, slot: 0 }];
      return { ...landing(segment), places };
    };
    const told: boolean[] = [];
    await pull({
      source,
      segments: planned,
      land: whole,
      notes: new List(),
      pace: pace(),
      reading,
      onSegment: ({ segment }) => told.push(segment.atOnce ?? false),
    });
    expect(asked).toEqual([8, ...Array.from({ length: 24 }, () => 1)]);
    expect(told.filter(Boolean)).toEqual([true]);
  });

  it("stop at the first failure, once no read is under way any more", async () => {
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
      land: landing,
      notes,
      pace: pace(),
      reading,
    });
    await expect(pulling).rejects.toThrow("ninth");
    expect([open, notes.isComplete, notes.noted.length < 10]).toEqual([0, false, true]);
  });

  it("stop where nothing more can be noted", async () => {
    const notes = new List();
    notes.room = async () => {
      if (notes.noted.length > 5) throw new Error("no room");
    };
    const pulling = pull({
      source: random,
      segments: segments(),
      land: landing,
      notes,
      pace: pace(),
      reading,
    });
    await expect(pulling).rejects.toThrow("no room");
    expect(notes.isComplete).toBe(false);
  });

  it("end what they are reading when the plan fails, and fail with the plan's error", async () => {
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
      land: landing,
      notes: new List(),
      pace: pace(),
      reading,
    });
    await expect(pulling).rejects.toThrow("no map");
    expect(read).toBe(6);
  });
});
