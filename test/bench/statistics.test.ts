import { describe, expect, it } from "vitest";
import {
  median,
  pairwiseRatios,
  spreadOf,
  standingOf,
  standingOfAll,
  verdictBetween,
  verdictOf,
} from "../../bench/statistics.js";

describe("the median", () => {
  it("is the middle value, or the mean of the two in the middle", () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([])).toBeNaN();
  });

  it("keeps the order of its values", () => {
    const values = [3, 1, 2];
    spreadOf(values);
    expect(values).toEqual([3, 1, 2]);
  });
});

describe("pairwise ratios", () => {
  it("are taken round by round, so that drift of the machine cancels out", () => {
    // The machine gets three times slower; the contender always takes half as long as the reference.
    expect(pairwiseRatios([1, 2, 3], [2, 4, 6])).toEqual({ count: 3, median: 0.5, min: 0.5, max: 0.5 });
  });

  it("stop when one of the two has no more rounds", () => {
    expect(pairwiseRatios([1, 9], [2])).toEqual({ count: 1, median: 0.5, min: 0.5, max: 0.5 });
  });
});

describe("a verdict", () => {
  it("is a difference only when every round saw it", () => {
    expect(verdictOf({ count: 5, median: 0.8, min: 0.7, max: 0.99 })).toBe("less");
    expect(verdictOf({ count: 5, median: 1.2, min: 1.01, max: 1.4 })).toBe("more");
    expect(verdictOf({ count: 5, median: 0.8, min: 0.7, max: 1.01 })).toBe("none");
  });

  it("is not given for few rounds, which may agree by chance", () => {
    expect(verdictOf({ count: 4, median: 0.5, min: 0.5, max: 0.5 })).toBe("open");
  });

  it("on two separate runs requires ranges that don't overlap", () => {
    const before = { count: 5, median: 2, min: 1.9, max: 2.2 };
    expect(verdictBetween(before, { count: 5, median: 1.5, min: 1.4, max: 1.8 })).toBe("less");
    expect(verdictBetween(before, { count: 5, median: 2.5, min: 2.3, max: 2.8 })).toBe("more");
    expect(verdictBetween(before, { count: 5, median: 1.5, min: 1.4, max: 1.95 })).toBe("none");
  });
});

describe("a target", () => {
  it("is met by all rounds, missed by all rounds, and undecided in between", () => {
    expect(standingOf({ count: 5, median: 0.75, min: 0.7, max: 0.8 }, 0.8)).toBe("met");
    expect(standingOf({ count: 5, median: 0.75, min: 0.7, max: 0.81 }, 0.8)).toBe("undecided");
    expect(standingOf({ count: 5, median: 0.9, min: 0.85, max: 1 }, 0.8)).toBe("missed");
    expect(standingOf({ count: 5, median: 0.9, min: 0.75, max: 1 }, 0.8)).toBe("undecided");
  });

  it("is neither met nor missed by few rounds", () => {
    expect(standingOf({ count: 4, median: 0.8, min: 0.7, max: 1 }, 0.8)).toBe("too few runs");
    expect(standingOf({ count: 1, median: 0.9, min: 0.9, max: 0.9 }, 0.8)).toBe("too few runs");
  });

  it("for every run is missed by a single one, and met by enough of them", () => {
    expect(standingOfAll({ count: 1, median: 129, min: 129, max: 129 }, 128)).toBe("missed");
    expect(standingOfAll({ count: 5, median: 100, min: 99, max: 129 }, 128)).toBe("missed");
    expect(standingOfAll({ count: 4, median: 100, min: 99, max: 128 }, 128)).toBe("too few runs");
    expect(standingOfAll({ count: 5, median: 100, min: 99, max: 128 }, 128)).toBe("met");
  });
});
