import { describe, expect, it } from "vitest";
import { PRUNED_BELOW } from "../../../src/backup/repository/manifest.js";
import { isFullDue } from "../../../src/backup/take/full-due.js";

type Points = Parameters<typeof isFullDue>[0];

interface Like {
  readonly level?: "full" | "incremental";
  readonly checkpoint?: null;
  readonly reason?: string;
}

/** Wednesday, a quarter past one at night by the local clock. */
const NOW = new Date(2026, 10, 25, 1, 15);

/** A point that is so many days older, to the minute. */
function point(daysAgo: number, { level = "full", checkpoint, reason }: Like = {}, minutes = 0): Points[0] {
  const at = new Date(2026, 10, 25 - daysAgo, 1, 15 + minutes);
  const disk = { name: "vda", ...(reason === undefined ? {} : { reason }) };
  return {
    createdAt: at.toISOString(),
    level,
    checkpoint: checkpoint === null ? null : { name: "c", creationTime: 1 },
    disks: [disk],
  } as unknown as Points[0];
}

describe("a full point every N days", () => {
  const every = { days: 7 };

  it("is due by the calendar, also if the run begins earlier in the night than the last one", () => {
    expect(isFullDue([point(6), point(1, { level: "incremental" })], every, NOW)).toBe(false);
    expect(isFullDue([point(7)], every, NOW)).toBe(true);
    expect(isFullDue([point(7, {}, 20)], every, NOW)).toBe(true);
    expect(isFullDue([point(20)], every, NOW)).toBe(true);
    expect(isFullDue([point(20), point(3), point(2, { level: "incremental" })], every, NOW)).toBe(false);
  });

  it("is due where no full point was read from the guest that increments can be based on", () => {
    expect(isFullDue([], every, NOW)).toBe(true);
    expect(isFullDue([point(1, { level: "incremental" })], every, NOW)).toBe(true);
    expect(isFullDue([point(9), point(2, { checkpoint: null })], every, NOW)).toBe(true);
    expect(isFullDue([point(2, { reason: PRUNED_BELOW })], every, NOW)).toBe(true);
    expect(isFullDue([point(2, { reason: "the disk is new" })], every, NOW)).toBe(false);
  });

  it("is due once after one of the future, by a clock that was wrong", () => {
    expect(isFullDue([point(-300)], every, NOW)).toBe(true);
    expect(isFullDue([point(-300), point(0)], every, NOW)).toBe(false);
  });
});

it("a full point of a weekday is due from that day on, once, and is made up for", () => {
  const sunday = { weekday: 0 };
  expect(isFullDue([point(3)], sunday, NOW)).toBe(false);
  expect(isFullDue([point(4)], sunday, NOW)).toBe(true);
  const wednesday = { weekday: 3 };
  expect(isFullDue([point(1)], wednesday, NOW)).toBe(true);
  expect(isFullDue([point(0)], wednesday, NOW)).toBe(false);
  const thursday = { weekday: 4 };
  expect(isFullDue([point(6)], thursday, NOW)).toBe(false);
  expect(isFullDue([point(7)], thursday, NOW)).toBe(true);
});
