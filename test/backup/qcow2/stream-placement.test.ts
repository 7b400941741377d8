import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ALL_SUBCLUSTERS } from "../../../src/backup/image/image.js";
import type { StoredRun } from "../../../src/backup/image/run-list.js";
import { SizeList } from "../../../src/backup/qcow2/size-list.js";
import { placed, StreamPlacement, usesOfPlaced } from "../../../src/backup/qcow2/stream-placement.js";
import { KiB, MiB } from "../image/support.js";

const CLUSTER = 64 * KiB;

describe("StreamPlacement", () => {
  it("goes back for a stream by a MiB at most, as a file that is uploaded allows", () => {
    const placement = new StreamPlacement(CLUSTER);
    const first = placement.stream(100);
    for (let i = 0; i < (1024 * 1024) / CLUSTER - 1; i += 1) placement.cluster();
    expect(placement.stream(100)).toBe(first + 100);
    placement.cluster();
    expect(placement.stream(100)).toBe(placement.end - CLUSTER);
  });

  it("puts streams back to back, across cluster boundaries", () => {
    const placement = new StreamPlacement(CLUSTER);
    const offsets = [40_000, 40_000, 10_000, 51_072].map((size) => placement.stream(size));
    expect(offsets).toEqual([CLUSTER, CLUSTER + 40_000, CLUSTER + 80_000, CLUSTER + 90_000]);
    expect(placement.end).toBe(4 * CLUSTER);
  });

  it("begins a new cluster if the one before is full to the last byte", () => {
    const placement = new StreamPlacement(CLUSTER);
    expect([CLUSTER / 2, CLUSTER / 2, 1].map((size) => placement.stream(size))).toEqual([
      CLUSTER,
      CLUSTER * 1.5,
      CLUSTER * 2,
    ]);
    expect(placement.end).toBe(3 * CLUSTER);
  });

  it("fills the space before a whole cluster with later streams as long as they fit", () => {
    const placement = new StreamPlacement(CLUSTER);
    expect(placement.stream(50_000)).toBe(CLUSTER);
    expect(placement.cluster()).toBe(2 * CLUSTER);
    expect(placement.stream(15_000)).toBe(CLUSTER + 50_000);
    expect(placement.stream(536)).toBe(CLUSTER + 65_000);
    expect(placement.stream(1)).toBe(3 * CLUSTER);
    expect(placement.cluster()).toBe(4 * CLUSTER);
  });

  it("never overlaps anything, and counts the references to each cluster", () => {
    const items = fc.array(fc.oneof(fc.integer({ min: 1, max: 16 * KiB - 1 }), fc.constant(0)));
    fc.assert(
      fc.property(items, (list) => {
        const clusterSize = 16 * KiB;
        const sizes = new SizeList(clusterSize);
        for (const size of list) sizes.push(size);
        const whole = { dataMask: ALL_SUBCLUSTERS, zeroMask: 0 };
        const runs: StoredRun[] = [{ cluster: 5, count: list.length, hostCluster: 0, ...whole }];
        const placement = new StreamPlacement(clusterSize);
        const found = [...placed({ clusterSize, runs, sizes }, placement)];

        const taken = found.map((run) =>
          run.streamBytes === undefined
            ? { from: run.hostCluster * clusterSize, to: (run.hostCluster + 1) * clusterSize }
            : { from: run.hostOffset, to: run.hostOffset + run.streamBytes },
        );
        const sorted = taken.toSorted((a, b) => a.from - b.from);
        for (const [i, { from }] of sorted.entries()) {
          expect(from).toBeGreaterThanOrEqual(sorted[i - 1]?.to ?? clusterSize);
        }
        expect(placement.end).toBeGreaterThanOrEqual(sorted.at(-1)?.to ?? 0);
        expect(placement.end).toBeLessThanOrEqual((1 + list.length) * clusterSize);

        const counted = new Map<number, number>();
        for (const { from, to } of taken) {
          for (let at = Math.floor(from / clusterSize); at * clusterSize < to; at += 1) {
            counted.set(at, (counted.get(at) ?? 0) + 1);
          }
        }
        const told: [number, number][] = [];
        for (const { first, end, refcount } of usesOfPlaced(found, clusterSize)) {
          for (let at = first; at < end; at += 1) told.push([at, refcount]);
        }
        expect(told).toEqual([...counted].toSorted(([a], [b]) => a - b));
      }),
    );
  });
});

describe("SizeList", () => {
  it.each([16 * KiB, 64 * KiB, 128 * KiB, 2 * MiB])(
    "keeps sizes up to a cluster of %i bytes",
    (clusterSize) => {
      const list = new SizeList(clusterSize);
      for (let i = 0; i < 70_000; i += 1) list.push(i % clusterSize);
      list.push(clusterSize - 1);
      expect(list.length).toBe(70_001);
      expect([0, 1, 65_535, 65_536, 69_999].map((i) => list.at(i))).toEqual(
        [0, 1, 65_535, 65_536, 69_999].map((i) => i % clusterSize),
      );
      expect(list.at(70_000)).toBe(clusterSize - 1);
      expect(() => list.push(clusterSize)).toThrow("no size");
    },
  );
});
