import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ALL_SUBCLUSTERS, type ClusterRun } from "../../../src/backup/image/image.js";
import { RunList } from "../../../src/backup/image/run-list.js";

const CLUSTER = 16 * 1024;

function listOf(runs: readonly ClusterRun[], virtualSize = Number.MAX_SAFE_INTEGER): RunList {
  const list = new RunList({ geometry: { virtualSize, clusterSize: CLUSTER }, firstHostCluster: 1 });
  for (const run of runs) list.append(run);
  return list;
}

const data = (cluster: number, count: number, host: number): ClusterRun => ({
  kind: "data",
  cluster,
  count,
  hostOffset: host * CLUSTER,
});
const zero = (cluster: number, count: number): ClusterRun => ({ kind: "zero", cluster, count });

describe("RunList", () => {
  it("joins runs that continue each other", () => {
    const list = listOf([data(0, 2, 1), data(2, 3, 3), data(5, 1, 7), zero(6, 1), zero(7, 1), zero(9, 1)]);
    const whole = { dataMask: ALL_SUBCLUSTERS, zeroMask: 0 };
    const nothing = { dataMask: 0, zeroMask: ALL_SUBCLUSTERS, hostCluster: 0 };
    expect([...list]).toEqual([
      { cluster: 0, count: 5, hostCluster: 1, ...whole },
      { cluster: 5, count: 1, hostCluster: 7, ...whole },
      { cluster: 6, count: 2, ...nothing },
      { cluster: 9, count: 1, ...nothing },
    ]);
  });

  it("returns any number of runs that can't be joined", () => {
    const steps = fc.array(fc.integer({ min: 2, max: 2 ** 33 }), { minLength: 9000, maxLength: 9000 });
    fc.assert(
      fc.property(steps, (gaps) => {
        let [cluster, host] = [0, 1];
        const runs = gaps.map((gap) => {
          const run = gap % 3 === 0 ? zero(cluster, gap - 1) : data(cluster, 1, host);
          cluster += gap;
          host += gap;
          return run;
        });
        const list = [...listOf(runs)];
        expect(list.length).toBe(runs.length);
        expect(list.every((run, i) => run.cluster === runs[i]?.cluster && run.count === runs[i]?.count)).toBe(
          true,
        );
      }),
      { numRuns: 5 },
    );
  });

  it("counts the bytes of data subclusters, and knows where guest and file end", () => {
    const partial = { kind: "partial", cluster: 4, count: 1, hostOffset: 9 * CLUSTER, zeroMask: 1 } as const;
    const list = listOf([data(0, 2, 1), { ...partial, dataMask: 0x8000_0006 }, zero(10, 5)]);
    expect(list).toMatchObject({ end: 15, hostEnd: 10, hasPartial: true });
    expect(list.dataBytes).toBe(2 * CLUSTER + 3 * (CLUSTER / 32));
  });

  it("counts no byte past the end of the disk", () => {
    expect(listOf([zero(0, 1), data(1, 2, 1)], 2 * CLUSTER + 700).dataBytes).toBe(CLUSTER + 700);
    const partial = { kind: "partial", cluster: 0, count: 1, hostOffset: CLUSTER, zeroMask: 0 } as const;
    // Subclusters of 512 bytes: the third has 76 bytes on the disk, the fifth none.
    expect(listOf([{ ...partial, dataMask: 0b10110 }], 1100).dataBytes).toBe(512 + 76);
  });

  it("treats a partial run that is all data or all zero as a whole one", () => {
    const partial = { kind: "partial", cluster: 0, count: 1, hostOffset: CLUSTER } as const;
    expect(listOf([{ ...partial, dataMask: ALL_SUBCLUSTERS, zeroMask: 0 }]).hasPartial).toBe(false);
    expect(listOf([{ ...partial, dataMask: 0, zeroMask: ALL_SUBCLUSTERS }]).hasPartial).toBe(false);
    expect(listOf([{ ...partial, dataMask: 0xffff, zeroMask: 0xffff0000 }]).hasPartial).toBe(true);
  });

  it.each<[string, readonly ClusterRun[], string]>([
    ["back in the guest", [zero(5, 2), zero(6, 1)], "out of order"],
    ["of no clusters", [zero(5, 0)], "out of order"],
    ["back in the file", [data(0, 2, 5), data(2, 1, 6)], "misplaced"],
    ["in the header", [data(0, 1, 0)], "misplaced"],
    ["between clusters", [data(0, 1, 1.5)], "misplaced"],
    [
      "with masks that overlap",
      [{ kind: "partial", cluster: 0, count: 1, hostOffset: CLUSTER, dataMask: 3, zeroMask: 2 }],
      "overlap",
    ],
    [
      "with empty masks",
      [{ kind: "partial", cluster: 0, count: 1, hostOffset: CLUSTER, dataMask: 0, zeroMask: 0 }],
      "empty",
    ],
  ])("refuses runs %s", (_title, runs, message) => {
    expect(() => listOf(runs)).toThrow(message);
  });
});
