import { describe, expect, it } from "vitest";
import { RateLimit } from "../../../src/backup/pull/rate-limit.js";
import { RequestWindow, requestBytesOf } from "../../../src/backup/pull/window.js";
import { storeWindow } from "../../../src/backup/restore/store-window.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const CLUSTER = 64 * KiB;

/** Bytes of a segment, and how many segments are under way. */
function shapeOf(sharers: number, options: Parameters<typeof storeWindow>[1] = {}): readonly number[] {
  const { window, preferredBlock } = storeWindow(sharers, options);
  const segmentBytes = requestBytesOf(window, CLUSTER, preferredBlock);
  return [segmentBytes, new RequestWindow(window, segmentBytes).lanes];
}

describe("what is read of a disk in an object store at a time", () => {
  it("is 32 MiB in two segments, which all disks share", () => {
    expect([1, 2].map((sharers) => shapeOf(sharers))).toEqual([
      [16 * MiB, 2],
      [8 * MiB, 2],
    ]);
  });

  it.each([
    ["64K", 64 * KiB, [512 * KiB, 1]],
    ["1M", MiB, [512 * KiB, 2]],
    ["5000001", 5_000_001, [2_500_000, 2]],
    ["256M", 256 * MiB, [16 * MiB, 16]],
  ] as const)("is no more than --in-flight %s", (_, inFlight, expected) => {
    expect(shapeOf(1, { window: { inFlight } })).toEqual(expected);
  });

  it.each([
    ["100K", 100 * KiB, [512 * KiB, 2]],
    ["1M", MiB, [MiB, 2]],
    ["1G", 1024 * MiB, [16 * MiB, 2]],
  ] as const)("is no more than passes --limit-rate %s in a second, or 512 KiB", (_, rate, expected) => {
    expect(shapeOf(1, { rateLimit: new RateLimit(rate) })).toEqual(expected);
  });

  it("keeps both limits, and the request size that the caller chose", () => {
    const options = { window: { inFlight: 4 * MiB }, rateLimit: new RateLimit(MiB) };
    expect(shapeOf(2, options)).toEqual([MiB, 4]);
    expect(shapeOf(2, { window: { inFlight: 4 * MiB, requestSize: 128 * KiB } })).toEqual([128 * KiB, 32]);
  });
});
