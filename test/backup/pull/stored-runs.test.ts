import { expect, it } from "vitest";
import { dataStretches, type PlannedRun } from "../../../src/backup/image/image.js";
import { storedRuns } from "../../../src/backup/pull/segment.js";

const CLUSTER = 64 * 1024;
const SUB = CLUSTER / 32;
const placement = {
  geometry: { virtualSize: 100 * CLUSTER, clusterSize: CLUSTER },
  hostOffset: (_cluster: number, rank: number) => (1 + rank) * CLUSTER,
};

function settled(stored: readonly number[], ...runs: PlannedRun[]) {
  return storedRuns(
    { index: 0, firstRank: 10, clusters: stored.length, runs },
    Uint8Array.from(stored),
    placement,
  );
}

it("splits a data run at clusters that turned out to be zeroes, whose slots stay empty", () => {
  expect(settled([1, 0, 0, 1, 1], { kind: "data", cluster: 5, count: 5 })).toEqual([
    { kind: "data", cluster: 5, count: 1, hostOffset: 11 * CLUSTER },
    { kind: "zero", cluster: 6, count: 2 },
    { kind: "data", cluster: 8, count: 2, hostOffset: 14 * CLUSTER },
  ]);
});

it("counts the slots over runs of every kind", () => {
  const partial = { kind: "partial", cluster: 9, count: 1, dataMask: 2, zeroMask: 1 } as const;
  const runs = settled(
    [1, 1, 1],
    { kind: "zero", cluster: 0, count: 7 },
    { kind: "data", cluster: 7, count: 1 },
    { kind: "partial", cluster: 8, count: 1, dataMask: 0, zeroMask: 6 },
    partial,
    { kind: "data", cluster: 12, count: 1 },
  );
  expect(runs).toEqual([
    { kind: "zero", cluster: 0, count: 7 },
    { kind: "data", cluster: 7, count: 1, hostOffset: 11 * CLUSTER },
    { kind: "partial", cluster: 8, count: 1, dataMask: 0, zeroMask: 6, hostOffset: 0 },
    { ...partial, hostOffset: 12 * CLUSTER },
    { kind: "data", cluster: 12, count: 1, hostOffset: 13 * CLUSTER },
  ]);
});

it("makes a partial cluster's data zeroes if none was stored, up to the highest bit", () => {
  const run = { kind: "partial", cluster: 1, count: 1, dataMask: 0x80000000, zeroMask: 0x40000000 } as const;
  expect(settled([0], run)).toEqual([{ ...run, dataMask: 0, zeroMask: 0xc0000000, hostOffset: 0 }]);
});

it("returns only the zeroes of a segment without slots", () => {
  expect(settled([], { kind: "zero", cluster: 3, count: 4 })).toEqual([
    { kind: "zero", cluster: 3, count: 4 },
  ]);
});

it("knows where a partial cluster's data is, up to the end of the disk", () => {
  const geometry = { virtualSize: CLUSTER + 3 * SUB + 100, clusterSize: CLUSTER };
  expect(dataStretches({ cluster: 0, dataMask: 0x80000003 }, geometry)).toEqual([
    { offset: 0, length: 2 * SUB },
    { offset: 31 * SUB, length: SUB },
  ]);
  expect(dataStretches({ cluster: 1, dataMask: 0x8000000d }, geometry)).toEqual([
    { offset: 0, length: SUB },
    { offset: 2 * SUB, length: SUB + 100 },
  ]);
});
