import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { layOut, refcountClusters } from "../../../src/backup/qcow2/layout.js";
import { GiB, KiB, MiB } from "../image/support.js";

/** Tries rising numbers of blocks until they count everything. */
function triedOut(others: number, clusterSize: number): { blocks: number; table: number } {
  for (let blocks = 0; ; blocks += 1) {
    const table = Math.ceil((blocks * 8) / clusterSize);
    if (blocks * (clusterSize / 2) >= others + blocks + table) return { blocks, table };
  }
}

describe("refcountClusters", () => {
  it("finds the fewest blocks that count everything, including themselves", () => {
    const clusterSize = fc.integer({ min: 9, max: 21 }).map((bits) => 2 ** bits);
    const others = fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: 10_000_000 }));
    fc.assert(
      fc.property(clusterSize, others, (size, count) => {
        expect(refcountClusters(count, size)).toEqual(triedOut(count, size));
      }),
      { numRuns: 500 },
    );
  });

  it("is right where one more cluster needs one more block, or a longer table", () => {
    for (const size of [512, 16 * KiB]) {
      const perBlock = size / 2;
      for (const blocks of [1, 2, 63, 64, 65, 128]) {
        for (let others = blocks * perBlock - 140; others < blocks * perBlock + 3; others += 1) {
          expect(refcountClusters(others, size)).toEqual(triedOut(others, size));
        }
      }
    }
  });
});

describe("layOut", () => {
  it("puts tables one after the other after the data, and nothing after them", () => {
    const contents = fc.record({
      geometry: fc.record({
        virtualSize: fc.integer({ min: 0, max: 1000 * GiB }),
        clusterSize: fc.constantFrom(16 * KiB, 64 * KiB, 2 * MiB),
      }),
      extended: fc.boolean(),
      dataEnd: fc.integer({ min: 1, max: 1_000_000 }),
      l2Tables: fc.integer({ min: 0, max: 5000 }),
    });
    fc.assert(
      fc.property(contents, (wanted) => {
        const { geometry, extended, dataEnd, l2Tables } = wanted;
        const { clusterSize } = geometry;
        const layout = layOut(wanted);
        const l1Bytes = layout.l1Entries * 8;
        expect(layout.l2Offset).toBe(dataEnd * clusterSize);
        expect(layout.l1Offset).toBe(layout.l2Offset + l2Tables * clusterSize);
        expect(layout.l1Clusters).toBe(Math.ceil(l1Bytes / clusterSize));
        expect(layout.refcountTableOffset).toBe(layout.l1Offset + layout.l1Clusters * clusterSize);
        const tableEnd = layout.refcountTableOffset + layout.refcountTableClusters * clusterSize;
        expect(layout.refcountBlocksOffset).toBe(tableEnd);
        expect(layout.fileSize).toBe(tableEnd + layout.refcountBlocks * clusterSize);
        const described = layout.l1Entries * (clusterSize / (extended ? 16 : 8)) * clusterSize;
        expect(described).toBeGreaterThanOrEqual(geometry.virtualSize);
      }),
    );
  });
});
