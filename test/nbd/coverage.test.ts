import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Coverage } from "../../src/nbd/coverage.js";

describe("coverage", () => {
  it("is complete when the pieces fill the request, in any order", () => {
    const cuts = fc.uniqueArray(fc.integer({ min: 1, max: 9999 }), { maxLength: 60 });
    const order = fc.array(fc.nat(), { minLength: 70, maxLength: 70 });
    fc.assert(
      fc.property(cuts, order, (between, keys) => {
        const edges = [0, ...between.sort((a, b) => a - b), 10_000];
        const pieces = edges.slice(1).map((end, index) => [edges[index] ?? 0, end] as const);
        const shuffled = pieces
          .map((piece, index) => ({ piece, key: keys[index] ?? 0 }))
          .sort((a, b) => a.key - b.key);
        const coverage = new Coverage(10_000);
        for (const { piece } of shuffled) {
          expect(coverage.complete).toBe(false);
          coverage.add(...piece);
        }
        expect(coverage.complete).toBe(true);
      }),
    );
  });

  it("agrees with a bitmap about overlaps", () => {
    const pieces = fc.array(fc.tuple(fc.integer({ min: -2, max: 34 }), fc.integer({ min: -2, max: 34 })));
    fc.assert(
      fc.property(pieces, (list) => {
        const coverage = new Coverage(32);
        const bitmap = new Array<boolean>(32).fill(false);
        for (const [start, end] of list) {
          const isInside = start >= 0 && start < end && end <= 32;
          const isNew = isInside && !bitmap.slice(start, end).includes(true);
          if (!isNew) {
            expect(() => coverage.add(start, end)).toThrow(/the server sent/);
            return;
          }
          coverage.add(start, end);
          bitmap.fill(true, start, end);
          expect(coverage.complete).toBe(!bitmap.includes(false));
        }
      }),
      { numRuns: 500 },
    );
  });

  it("is not misled by the sum of the bytes", () => {
    const coverage = new Coverage(1024);
    coverage.add(0, 512);
    expect(() => coverage.add(0, 512)).toThrow(/twice/);
    expect(coverage.complete).toBe(false);
  });

  it("limits what it has to remember", () => {
    const coverage = new Coverage(2 ** 30);
    expect(() => {
      for (let at = 0; at < 2 ** 30; at += 2) coverage.add(at, at + 1);
    }).toThrow(/more pieces/);
  });
});
