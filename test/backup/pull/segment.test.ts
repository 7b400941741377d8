import { describe, expect, it } from "vitest";
import type { PlannedRun } from "../../../src/backup/image/image.js";
import { readRangesOf, requestsOf, type Segment } from "../../../src/backup/pull/segment.js";

const CLUSTER = 64 * 1024;
const SUB = CLUSTER / 32;
const geometry = { virtualSize: 20 * CLUSTER - 3000, clusterSize: CLUSTER };

function segmentOf(...runs: PlannedRun[]): Segment {
  return { index: 3, firstRank: 17, clusters: 9, runs };
}

describe("read ranges", () => {
  it("are what data and partial runs need, with their slots", () => {
    const places = readRangesOf(
      segmentOf(
        { kind: "zero", cluster: 0, count: 2 },
        { kind: "data", cluster: 2, count: 3 },
        { kind: "partial", cluster: 6, count: 1, dataMask: 0b11010, zeroMask: 1 },
        { kind: "partial", cluster: 7, count: 1, dataMask: 0, zeroMask: 1 },
        { kind: "data", cluster: 8, count: 1 },
      ),
      geometry,
    );
    expect(places).toEqual([
      { offset: 2 * CLUSTER, end: 5 * CLUSTER, slot: 0 },
      { offset: 6 * CLUSTER + SUB, end: 6 * CLUSTER + 2 * SUB, slot: 3 },
      { offset: 6 * CLUSTER + 3 * SUB, end: 6 * CLUSTER + 5 * SUB, slot: 3 },
      { offset: 8 * CLUSTER, end: 9 * CLUSTER, slot: 4 },
    ]);
  });

  it("end with the disk", () => {
    const end = geometry.virtualSize;
    expect(readRangesOf(segmentOf({ kind: "data", cluster: 18, count: 2 }), geometry)).toEqual([
      { offset: 18 * CLUSTER, end, slot: 0 },
    ]);
    const partial = { kind: "partial", cluster: 19, count: 1, dataMask: 0xc0000001, zeroMask: 0 } as const;
    expect(readRangesOf(segmentOf(partial), geometry)).toEqual([
      { offset: 19 * CLUSTER, end: 19 * CLUSTER + SUB, slot: 0 },
      { offset: 20 * CLUSTER - 2 * SUB, end, slot: 0 },
    ]);
  });
});

describe("reads", () => {
  const place = (offset: number, end: number) => ({ offset, end, slot: 0 });
  const only = (readThrough: number) => ({ readThrough, mostRead: 1000 });

  it("are the ranges if clean bytes must not be read, with neighbours joined", () => {
    const places = [place(0, 10), place(10, 20), place(21, 30)];
    expect(requestsOf(places, only(0))).toEqual([
      { offset: 0, length: 20 },
      { offset: 21, length: 9 },
    ]);
    expect(requestsOf([], only(0))).toEqual([]);
  });

  it("cover gaps that are small enough", () => {
    const places = [place(0, 10), place(110, 120), place(221, 230), place(331, 340)];
    expect(requestsOf(places, only(100))).toEqual([
      { offset: 0, length: 120 },
      { offset: 221, length: 9 },
      { offset: 331, length: 9 },
    ]);
    expect(requestsOf(places, only(101))).toEqual([{ offset: 0, length: 340 }]);
  });

  it("join ranges up to the limit of one read, with or without a gap between them", () => {
    const places = [place(0, 40), place(40, 80), place(90, 100), place(110, 130), place(130, 211)];
    expect(requestsOf(places, { readThrough: 10, mostRead: 100 })).toEqual([
      { offset: 0, length: 100 },
      { offset: 110, length: 20 },
      { offset: 130, length: 81 },
    ]);
    expect(requestsOf(places, { readThrough: 10, mostRead: 99 })).toEqual([
      { offset: 0, length: 80 },
      { offset: 90, length: 40 },
      { offset: 130, length: 81 },
    ]);
  });

  it("divide a longer range", () => {
    expect(requestsOf([place(0, 250), place(250, 270)], { readThrough: 10, mostRead: 100 })).toEqual([
      { offset: 0, length: 100 },
      { offset: 100, length: 100 },
      { offset: 200, length: 70 },
    ]);
    expect(requestsOf([place(0, 200), place(200, 201)], { readThrough: 10, mostRead: 100 })).toEqual([
      { offset: 0, length: 100 },
      { offset: 100, length: 100 },
      { offset: 200, length: 1 },
    ]);
  });
});
