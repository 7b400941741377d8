import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { mergedRequests } from "../../../src/backup/chain/merged-requests.js";

const limits = { most: 100, gap: 10, spare: 1000 };
const spans = (requests: readonly { position: number; length: number }[]) =>
  requests.map(({ position, length }) => [position, position + length]);

describe("requests for ranges of a file", () => {
  it("are one for neighbours, with small gaps between them, and others beyond", () => {
    const needed = [
      { position: 50, length: 10 },
      { position: 0, length: 20 },
      { position: 20, length: 5 },
      { position: 35, length: 15 },
      { position: 71, length: 1 },
    ];
    const { requests, gapBytes } = mergedRequests(needed, limits);
    expect(spans(requests)).toEqual([
      [0, 60],
      [71, 72],
    ]);
    expect(gapBytes).toBe(10);
    expect(requests[0]?.ranges.map(({ position }) => position)).toEqual([0, 20, 35, 50]);
  });

  it("have all ranges, are no longer than allowed, and read no more gaps than there is room for", () => {
    const range = fc.record({ position: fc.nat(2000), length: fc.integer({ min: 1, max: 60 }) });
    fc.assert(
      fc.property(fc.array(range, { maxLength: 60 }), fc.nat(50), (needed, spare) => {
        const { requests, gapBytes } = mergedRequests(needed, { ...limits, spare });
        expect(requests.flatMap(({ ranges }) => ranges)).toHaveLength(needed.length);
        expect(gapBytes).toBeLessThanOrEqual(spare);
        for (const { position, length, ranges } of requests) {
          expect(length).toBeLessThanOrEqual(limits.most);
          for (const each of ranges) {
            expect(each.position).toBeGreaterThanOrEqual(position);
            expect(each.position + each.length).toBeLessThanOrEqual(position + length);
          }
        }
        const total = requests.reduce((sum, { length }) => sum + length, 0);
        // Ranges that overlap are read once, unless that makes a request too long.
        expect(total).toBeLessThanOrEqual(needed.reduce((sum, { length }) => sum + length, 0) + gapBytes);
      }),
    );
  });
});
