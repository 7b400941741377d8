import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { classify, cleanZeroesFrom } from "../../../src/backup/export/extent-algebra.js";

const flagged = (...extents: [end: number, flags: number][]) => ({
  ends: Float64Array.from(extents, ([end]) => end),
  flags: Float64Array.from(extents, ([, flags]) => flags),
});

describe("classify", () => {
  it("calls dirty zeroes zero, dirty data data, and everything else clean", () => {
    const status = {
      offset: 0,
      length: 40,
      dirty: flagged([10, 1], [20, 0], [40, 1]),
      allocation: flagged([12, 0], [25, 3], [30, 0], [40, 2]),
    };
    expect(classify(status)).toEqual([
      { offset: 0, length: 10, state: "data" },
      { offset: 10, length: 10, state: "clean" },
      { offset: 20, length: 5, state: "zero" },
      { offset: 25, length: 5, state: "data" },
      { offset: 30, length: 10, state: "zero" },
    ]);
  });

  it("calls a hole data unless it reads as zeroes", () => {
    const status = { offset: 0, length: 8, allocation: flagged([8, 1]) };
    expect(classify(status)).toEqual([{ offset: 0, length: 8, state: "data" }]);
  });

  it("calls nothing clean without a bitmap, and everything data without contexts", () => {
    const full = { offset: 4, length: 8, allocation: flagged([8, 0], [12, 3]) };
    expect(classify(full).map(({ state }) => state)).toEqual(["data", "zero"]);
    expect(classify({ offset: 4, length: 8 })).toEqual([{ offset: 4, length: 8, state: "data" }]);
  });

  it("refuses a status that ends before the range does", () => {
    const status = { offset: 0, length: 10, dirty: flagged([6, 1]) };
    expect(() => classify(status)).toThrow(RangeError);
  });

  it("agrees with a byte-by-byte evaluation of both contexts", () => {
    const lists = fc.array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 0, max: 3 })), {
      minLength: 1,
    });
    fc.assert(
      fc.property(lists, lists, fc.nat(90), (dirtyRuns, allocationRuns, dirtyFrom) => {
        const dirtyFlags = dirtyRuns.flatMap(([length, flags]) => new Array<number>(length).fill(flags & 1));
        const allocationFlags = allocationRuns.flatMap(([length, flags]) =>
          new Array<number>(length).fill(flags),
        );
        const length = Math.min(dirtyFlags.length, allocationFlags.length);
        const dirty = asRuns(dirtyRuns);
        const seen = classify({ offset: 0, length, dirty, allocation: asRuns(allocationRuns), dirtyFrom });
        const bytes = seen.flatMap((extent) => new Array<string>(extent.length).fill(extent.state));
        const expected = dirtyFlags
          .slice(0, length)
          .map((flag, i) =>
            flag === 0 && i < dirtyFrom ? "clean" : ((allocationFlags[i] ?? 0) & 2) === 0 ? "data" : "zero",
          );
        expect(bytes).toEqual(expected);
      }),
    );
  });
});

function asRuns(runs: readonly [length: number, flags: number][]) {
  let end = 0;
  return flagged(
    ...runs.map(([length, flags]): [number, number] => {
      end += length;
      return [end, flags];
    }),
  );
}

describe("cleanZeroesFrom", () => {
  const extents = (...list: [offset: number, length: number, state: "clean" | "zero" | "data"][]) =>
    list.map(([offset, length, state]) => ({ offset, length, state }));

  it("makes whole units of zeroes clean, but nothing before the given byte", () => {
    const list = extents([0, 20, "zero"], [20, 10, "data"], [30, 35, "zero"], [65, 3, "zero"]);
    expect(cleanZeroesFrom(11, list, 10)).toEqual(
      extents([0, 20, "zero"], [20, 10, "data"], [30, 30, "clean"], [60, 5, "zero"], [65, 3, "zero"]),
    );
    expect(cleanZeroesFrom(10, list.slice(0, 1), 10)).toEqual(extents([0, 10, "zero"], [10, 10, "clean"]));
    expect(cleanZeroesFrom(68, list, 10)).toEqual(list);
  });
});
