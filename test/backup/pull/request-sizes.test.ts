import { describe, expect, it } from "vitest";
import { RequestSizes, requestBytesOf } from "../../../src/backup/pull/window.js";

const KiB = 1024;
const MiB = 1024 * KiB;

describe("the request size", () => {
  it("is what the user asks for, but at least a cluster", () => {
    expect(requestBytesOf({ requestSize: 256 * KiB }, 64 * KiB)).toBe(256 * KiB);
    expect(requestBytesOf({ requestSize: 4 * KiB }, 64 * KiB)).toBe(64 * KiB);
    expect(requestBytesOf({ requestSize: 256 * KiB }, 64 * KiB, 4 * MiB)).toBe(256 * KiB);
  });

  it("is what the server prefers if the user asks for nothing", () => {
    expect(requestBytesOf({}, 64 * KiB, 4 * MiB)).toBe(4 * MiB);
    expect(requestBytesOf({}, 64 * KiB, 4096)).toBe(requestBytesOf({}, 64 * KiB));
  });

  it("is 512 KiB, or a larger cluster, if nobody prefers anything", () => {
    expect(requestBytesOf({}, 64 * KiB)).toBe(512 * KiB);
    expect(requestBytesOf({}, 2 * MiB)).toBe(2 * MiB);
  });
});

describe("the request sizes of an export", () => {
  const sizeFor = (options: Partial<ConstructorParameters<typeof RequestSizes>[0]>) =>
    new RequestSizes({ window: {}, clusterSize: 64 * KiB, maximum: 32 * MiB, readThrough: 0, ...options });

  it("grow once the server has answered a large request", () => {
    const size = sizeFor({});
    expect([size.mostRead, size.most, size.firstSegmentBytes]).toEqual([512 * KiB, MiB, 8 * MiB]);
    size.enlarge();
    expect(size.mostRead).toBe(MiB);
  });

  it.each([
    ["the user gives a request size", { window: { requestSize: 256 * KiB } }, 256 * KiB],
    ["the user gives the bytes in flight", { window: { inFlight: 64 * MiB } }, 512 * KiB],
    ["the server's maximum is small", { maximum: 4 * MiB }, 512 * KiB],
    ["the server prefers larger ones anyway", { preferredBlock: 4 * MiB }, 4 * MiB],
    ["the server gives no maximum", { maximum: undefined }, 512 * KiB],
  ])("stay as they are if %s", (_why, options, bytes) => {
    const size = sizeFor(options);
    size.enlarge();
    expect([size.mostRead, size.most, size.firstSegmentBytes]).toEqual([bytes, bytes, undefined]);
  });
});
