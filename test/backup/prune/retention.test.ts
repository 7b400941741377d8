import { describe, expect, it } from "vitest";
import { keptBy } from "../../../src/backup/prune/retention.js";

const at = (year: number, month: number, day: number, hour = 12): { id: string; time: number } => {
  const time = new Date(year, month - 1, day, hour).getTime();
  return { id: `${year}-${month}-${day}T${hour}`, time };
};

const NOW = new Date(2027, 5, 1).getTime();

describe("retention", () => {
  it("keeps the given number of newest points", () => {
    const points = [at(2026, 1, 1), at(2026, 1, 2), at(2026, 1, 3)];
    expect([...keptBy(points, { last: 2 }, NOW).keys()].sort()).toEqual(["2026-1-2T12", "2026-1-3T12"]);
  });

  it("keeps the newest point of each of the last days that have points, whatever the gaps", () => {
    const points = [
      at(2026, 1, 1),
      at(2026, 1, 5, 1),
      at(2026, 1, 5, 23),
      at(2026, 2, 1, 3),
      at(2026, 2, 1, 4),
    ];
    expect([...keptBy(points, { daily: 2 }, NOW).keys()].sort()).toEqual(["2026-1-5T23", "2026-2-1T4"]);
  });

  it("counts weeks from Monday, across the turn of the year", () => {
    // 28 December 2026 is a Monday.
    const points = [at(2026, 12, 27), at(2026, 12, 28), at(2027, 1, 1), at(2027, 1, 3), at(2027, 1, 4)];
    expect([...keptBy(points, { weekly: 3 }, NOW).keys()].sort()).toEqual([
      "2026-12-27T12",
      "2027-1-3T12",
      "2027-1-4T12",
    ]);
  });

  it("keeps what any rule keeps, and says which rules", () => {
    const points = [at(2026, 1, 31), at(2026, 2, 27), at(2026, 2, 28)];
    expect(Object.fromEntries(keptBy(points, { last: 2, monthly: 5 }, NOW))).toEqual({
      "2026-2-28T12": ["last", "monthly"],
      "2026-2-27T12": ["last"],
      "2026-1-31T12": ["monthly"],
    });
  });

  it("keeps nothing if no rule does", () => {
    expect(keptBy([at(2026, 1, 1)], { last: 0 }, NOW).size).toBe(0);
  });

  it("keeps what is of later than now, and counts it for no day", () => {
    const points = [at(2026, 1, 1), at(2026, 1, 2), at(2036, 1, 3), at(2026, 1, 3), at(2026, 1, 4)];
    expect(Object.fromEntries(keptBy(points, { daily: 2 }, NOW))).toEqual({
      "2026-1-4T12": ["daily"],
      "2026-1-3T12": ["daily"],
      "2036-1-3T12": ["ahead of the clock"],
    });
  });

  it("counts it as any other where no rule goes by time", () => {
    const points = [at(2026, 1, 1), at(2036, 1, 2), at(2026, 1, 3)];
    expect([...keptBy(points, { last: 1 }, NOW).keys()]).toEqual(["2026-1-3T12"]);
    expect([...keptBy(points, { last: 2 }, NOW).keys()]).toEqual(["2026-1-3T12", "2036-1-2T12"]);
  });

  it("counts a day once, if a clock that was slow for a while comes between", () => {
    const points = [at(2026, 1, 1), at(2026, 1, 2, 3), at(1970, 1, 2), at(2026, 1, 2, 9)];
    expect([...keptBy(points, { daily: 2 }, NOW).keys()]).toEqual(["2026-1-2T9", "1970-1-2T12"]);
  });
});
