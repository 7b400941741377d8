import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Extent, ExtentState } from "../../../src/backup/base/extent.js";
import { GranularityError, type PlanTotals, plan } from "../../../src/backup/pull/plan.js";
import type { Segment } from "../../../src/backup/pull/segment.js";
import { collect } from "../../support/collect.js";

const CLUSTER = 16 * 1024;
const SUBCLUSTER = CLUSTER / 32;

async function planned(
  states: readonly (readonly [ExtentState, number])[],
  segmentBytes = 4 * CLUSTER,
  totals?: PlanTotals,
  firstSegmentBytes?: number,
): Promise<Segment[]> {
  const extents = toExtents(states);
  const virtualSize = extents.reduce((size, { length }) => size + length, 0);
  const options = { geometry: { virtualSize, clusterSize: CLUSTER }, segmentBytes, firstSegmentBytes };
  return await collect(plan(inBatches(extents), options, totals));
}

function toExtents(states: readonly (readonly [ExtentState, number])[]): Extent[] {
  let offset = 0;
  return states.map(([state, length]) => {
    const extent = { offset, length, state };
    offset += length;
    return extent;
  });
}

/** In batches of one, two, three ... items: batching must not matter. */
async function* inBatches<T>(items: readonly T[]): AsyncGenerator<readonly T[]> {
  for (let at = 0, count = 1; at < items.length; at += count - 1) {
    yield items.slice(at, at + count);
    count += 1;
  }
}

describe("plan", () => {
  it("packs scattered data into one segment and keeps the zeroes between in order", async () => {
    const segments = await planned([
      ["data", CLUSTER],
      ["clean", CLUSTER],
      ["zero", 2 * CLUSTER],
      ["data", 2 * CLUSTER],
      ["clean", CLUSTER],
    ]);
    expect(segments).toEqual([
      {
        index: 0,
        firstRank: 0,
        clusters: 3,
        runs: [
          { kind: "data", cluster: 0, count: 1 },
          { kind: "zero", cluster: 2, count: 2 },
          { kind: "data", cluster: 4, count: 2 },
        ],
      },
    ]);
  });

  it("cuts long data into segments of the requested size, with consecutive ranks", async () => {
    const segments = await planned([["data", 10 * CLUSTER]]);
    expect(segments.map(({ firstRank, clusters }) => [firstRank, clusters])).toEqual([
      [0, 4],
      [4, 4],
      [8, 2],
    ]);
  });

  it("makes one large segment of the first run that is long enough for it", async () => {
    const segments = await planned(
      [
        ["data", 9 * CLUSTER],
        ["zero", CLUSTER],
        ["data", 25 * CLUSTER],
        ["clean", CLUSTER],
        ["data", 12 * CLUSTER],
      ],
      4 * CLUSTER,
      undefined,
      10 * CLUSTER,
    );
    const shape = segments.map(({ firstRank, clusters, mostRead }) => [firstRank, clusters, mostRead]);
    expect(shape).toEqual([
      [0, 4, undefined],
      [4, 4, undefined],
      // The zeroes are included; the long run begins a new segment.
      [8, 1, undefined],
      [9, 10, 10 * CLUSTER],
      [19, 4, undefined],
      [23, 4, undefined],
      [27, 4, undefined],
      [31, 4, undefined],
      [35, 4, undefined],
      [39, 4, undefined],
      [43, 3, undefined],
    ]);
    expect(segments[3]?.runs).toEqual([{ kind: "data", cluster: 10, count: 10 }]);
    expect(segments.map(({ index }) => index)).toEqual(segments.map((_, at) => at));
  });

  it("goes on after a run that one large segment covers to its end", async () => {
    const states = [
      ["data", 8 * CLUSTER],
      ["data", 8 * CLUSTER],
    ] as const;
    const segments = await planned(states, 8 * CLUSTER, undefined, 8 * CLUSTER);
    expect(segments.map(({ clusters, mostRead }) => [clusters, mostRead])).toEqual([
      [8, 8 * CLUSTER],
      [8, undefined],
    ]);
  });

  it("reads a whole cluster if all of it is defined and any of it is data", async () => {
    const segments = await planned([
      ["zero", 100],
      ["data", 1],
      ["zero", CLUSTER - 101],
    ]);
    expect(segments[0]?.runs).toEqual([{ kind: "data", cluster: 0, count: 1 }]);
  });

  it("describes a partly clean cluster by its subclusters", async () => {
    const segments = await planned([
      ["clean", SUBCLUSTER],
      ["data", 2 * SUBCLUSTER],
      ["zero", SUBCLUSTER],
      ["clean", CLUSTER - 4 * SUBCLUSTER],
    ]);
    expect(segments[0]?.runs).toEqual([
      { kind: "partial", cluster: 0, count: 1, dataMask: 0b0110, zeroMask: 0b1000 },
    ]);
  });

  it("gives unsigned masks if the last subcluster is set", async () => {
    const segments = await planned([
      ["clean", CLUSTER - SUBCLUSTER],
      ["data", SUBCLUSTER],
    ]);
    expect(segments[0]?.runs).toMatchObject([{ kind: "partial", dataMask: 0x80000000, zeroMask: 0 }]);
  });

  it("refuses a bitmap finer than a subcluster, and names the place", async () => {
    const torn = planned([
      ["clean", 3 * SUBCLUSTER + 7],
      ["data", CLUSTER - 3 * SUBCLUSTER - 7],
    ]);
    await expect(torn).rejects.toThrow(GranularityError);
    await expect(torn).rejects.toMatchObject({ details: { guestOffset: 3 * SUBCLUSTER } });
  });

  it("treats the truncated last cluster as a whole one", async () => {
    expect((await planned([["data", CLUSTER + 577]]))[0]?.runs).toEqual([
      { kind: "data", cluster: 0, count: 2 },
    ]);
    const ragged = await planned([
      ["zero", CLUSTER + 300],
      ["data", 277],
    ]);
    expect(ragged[0]?.runs).toEqual([
      { kind: "zero", cluster: 0, count: 1 },
      { kind: "data", cluster: 1, count: 1 },
    ]);
  });

  it("plans nothing for a clean disk or an empty one", async () => {
    expect(await planned([["clean", 5 * CLUSTER]])).toEqual([]);
    expect(await planned([])).toEqual([]);
  });

  it("ends a segment of countless zero runs, so that memory stays bounded", async () => {
    const states = Array.from({ length: 5000 }, (_, i): [ExtentState, number] => [
      i % 2 ? "clean" : "zero",
      CLUSTER,
    ]);
    const segments = await planned(states);
    expect(Math.max(...segments.map(({ runs }) => runs.length))).toBeLessThanOrEqual(1024);
    expect(segments.flatMap(({ runs }) => runs)).toHaveLength(2500);
  });

  it("covers every defined byte exactly once, in order, for any extents", async () => {
    const states = fc.array(
      fc.tuple(fc.constantFrom<ExtentState>("clean", "zero", "data"), fc.integer({ min: 1, max: 100 })),
      { minLength: 1, maxLength: 40 },
    );
    await fc.assert(
      fc.asyncProperty(states, fc.integer({ min: 1, max: 5 }), async (drawn, perSegment) => {
        const scaled = drawn.map(([state, units]) => [state, units * SUBCLUSTER] as const);
        const totals = { extents: 0, definedBytes: 0 };
        const segments = await planned(scaled, perSegment * CLUSTER, totals);
        const defined = scaled.flatMap(([state, length]) =>
          new Array<ExtentState>(length / SUBCLUSTER).fill(state),
        );
        const seen = new Array<ExtentState>(defined.length).fill("clean");
        let rank = 0;
        for (const [i, segment] of segments.entries()) {
          expect(segment.index).toBe(i);
          expect(segment.firstRank).toBe(rank);
          expect(segment.clusters).toBeLessThanOrEqual(perSegment);
          rank += segment.clusters;
          for (const run of segment.runs) {
            for (
              let at = run.cluster * 32;
              at < Math.min((run.cluster + run.count) * 32, seen.length);
              at += 1
            ) {
              expect(seen[at]).toBe("clean");
              seen[at] = stateAt(run, at % 32);
            }
          }
        }
        for (const [i, state] of defined.entries()) {
          // A fully defined cluster may be read as data where it is zero, never the other way round.
          if (state === "clean") expect(seen[i]).toBe("clean");
          else expect(["data", state]).toContain(seen[i]);
        }
        expect(totals.definedBytes).toBe(defined.filter((state) => state !== "clean").length * SUBCLUSTER);
      }),
    );
  });
});

function stateAt(run: Segment["runs"][number], subcluster: number): ExtentState {
  if (run.kind !== "partial") return run.kind;
  if ((run.dataMask >>> subcluster) & 1) return "data";
  return (run.zeroMask >>> subcluster) & 1 ? "zero" : "clean";
}
