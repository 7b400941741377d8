import { describe, expect, it } from "vitest";
import { RequestSizes, requestBytesOf } from "../../../src/backup/pull/window.js";

const KiB = 1024;
const MiB = 1024 * KiB;

describe("a request's size", () => {
  it("is what is asked for, but a cluster at the least", () => {
    expect(requestBytesOf({ requestSize: 256 * KiB }, 64 * KiB)).toBe(256 * KiB);
    expect(requestBytesOf({ requestSize: 4 * KiB }, 64 * KiB)).toBe(64 * KiB);
    expect(requestBytesOf({ requestSize: 256 * KiB }, 64 * KiB, 4 * MiB)).toBe(256 * KiB);
  });

  it("is as large as the server prefers, where nothing is asked for", () => {
    expect(requestBytesOf({}, 64 * KiB, 4 * MiB)).toBe(4 * MiB);
    expect(requestBytesOf({}, 64 * KiB, 4096)).toBe(requestBytesOf({}, 64 * KiB));
  });

  it("is half a MiB, or a cluster that is larger, where nobody prefers anything", () => {
    expect(requestBytesOf({}, 64 * KiB)).toBe(512 * KiB);
    expect(requestBytesOf({}, 2 * MiB)).toBe(2 * MiB);
  });
});

describe("the size of an export's requests", () => {
  const sizeFor = (options: Partial<ConstructorParameters<typeof RequestSizes>[0]>) =>
    new RequestSizes({ window: {}, clusterSize: 64 * KiB, maximum: 32 * MiB, readThrough: 0, ...options });

  it("grows once the server has answered a large one", () => {
    const size = sizeFor({});
    expect([size.mostRead, size.most, size.firstSegmentBytes]).toEqual([512 * KiB, MiB, 8 * MiB]);
    size.enlarge();
    expect(size.mostRead).toBe(MiB);
  });

  it.each([
    ["somebody says how much one request shall ask for", { window: { requestSize: 256 * KiB } }, 256 * KiB],
    ["somebody says how much shall be under way", { window: { inFlight: 64 * MiB } }, 512 * KiB],
    ["the server answers less at once", { maximum: 4 * MiB }, 512 * KiB],
    ["the server prefers larger ones anyway", { preferredBlock: 4 * MiB }, 4 * MiB],
    ["larger ones bring nothing", { maximum: undefined }, 512 * KiB],
  ])("stays where %s", (_why, options, bytes) => {
    const size = sizeFor(options);
    size.enlarge();
    expect([size.mostRead, size.most, size.firstSegmentBytes]).toEqual([bytes, bytes, undefined]);
  });
});
