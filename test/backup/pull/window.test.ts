import { describe, expect, it } from "vitest";
import { CONNECTIONS } from "../../../src/backup/export/open-export.js";
import { RequestWindow, type Window } from "../../../src/backup/pull/window.js";

const MiB = 1024 * 1024;

/** Simulates a server with latency `latencyMs` and bandwidth `bytesPerMs`. */
function run(
  pace: RequestWindow,
  segmentBytes: number,
  latencyMs: number,
  bytesPerMs: number,
  ms = 5000,
): number {
  let now = 1000;
  for (let busy = now; now < 1000 + ms; ) {
    // All lanes ask at once; the answers come one after the other, the first after the latency.
    const asked = now;
    busy = Math.max(busy, asked + latencyMs);
    for (let lane = pace.lanes; lane > 0; lane -= 1) {
      const firstByte = busy;
      busy += segmentBytes / bytesPerMs;
      now = busy;
      pace.measured({ bytes: segmentBytes, asked, firstByte, done: busy });
    }
  }
  return pace.lanes;
}

function paceOf(window: Window, segmentBytes = MiB): RequestWindow {
  return new RequestWindow(window, segmentBytes);
}

describe("the request window", () => {
  it("starts with one lane, and stays minimal if the server is near", () => {
    const pace = paceOf({});
    expect(pace.lanes).toBe(1);
    expect(run(pace, MiB, 0.2, 3 * MiB)).toBe(4);
  });

  it("begins with 16 MiB if the first answer took long", () => {
    const pace = paceOf({});
    for (const asked of [1000, 1010, 1020, 1030]) {
      pace.measured({ bytes: MiB, asked, firstByte: asked + 5, done: asked + 6 });
    }
    expect(pace.lanes).toBe(16);
  });

  it("grows with the latency, up to twice the bandwidth-delay product", () => {
    // 1 MiB/ms over 20 ms: 20 MiB are in transit.
    const lanes = run(paceOf({}), MiB, 20, MiB);
    expect(lanes).toBeGreaterThanOrEqual(20);
    expect(lanes).toBeLessThanOrEqual(42);
  });

  it("holds at most 64 MiB in flight, in segments of any size", () => {
    expect(run(paceOf({}), MiB, 500, 100 * MiB)).toBe(64);
    expect(run(paceOf({}, 16 * MiB), 16 * MiB, 500, 100 * MiB)).toBe(4);
  });

  it("keeps to the requested size, whatever the server does", () => {
    const pace = paceOf({ inFlight: 3 * MiB });
    expect([pace.lanes, run(pace, MiB, 500, 100 * MiB)]).toEqual([3, 3]);
    expect(paceOf({ inFlight: 100 * MiB }).lanes).toBe(100);
  });

  it("has at least one lane", () => {
    expect(paceOf({ inFlight: 1 }).lanes).toBe(1);
    expect(paceOf({}, 128 * MiB).lanes).toBe(1);
  });

  it("ignores segments without any bytes", () => {
    const pace = paceOf({});
    const least = pace.lanes;
    for (let at = 0; at < 1000; at += 1) {
      pace.measured({ bytes: 0, asked: at, firstByte: undefined, done: at + 1 });
    }
    expect(pace.lanes).toBe(least);
  });

  it("never shrinks", () => {
    const pace = paceOf({});
    const grown = run(pace, MiB, 50, MiB);
    expect(grown).toBeGreaterThan(8);
    expect(run(pace, MiB, 0.1, MiB)).toBe(grown);
  });
});

describe("the connections of a request window", () => {
  it("are two if the server is near, and as many as the bytes in flight need if it is far", () => {
    const near = paceOf({});
    expect(near.connections).toBe(CONNECTIONS);
    run(near, MiB, 1.5, MiB);
    expect(near.connections).toBe(2);
    const far = paceOf({});
    run(far, MiB, 5, MiB);
    expect(far.connections).toBe(2);
    const farther = paceOf({});
    run(farther, MiB, 20, MiB);
    expect(farther.connections).toBe(3);
    const farthest = paceOf({});
    run(farthest, MiB, 100, MiB);
    expect(farthest.connections).toBe(4);
  });

  it("start with one if told so, and become more if the server is far", () => {
    const pace = new RequestWindow({}, MiB, 1);
    expect(pace.connections).toBe(1);
    run(pace, MiB, 20, MiB);
    expect(pace.connections).toBe(3);
  });

  it("are never fewer than they were", () => {
    const pace = paceOf({});
    run(pace, MiB, 50, MiB);
    expect(pace.connections).toBe(4);
    run(pace, MiB, 0.1, MiB);
    expect(pace.connections).toBe(4);
  });

  it.each([1, 2, 8])("are %i if that is requested, however far the server is", (connections) => {
    const pace = paceOf({ connections });
    expect(pace.connections).toBe(connections);
    run(pace, MiB, 50, MiB);
    expect(pace.connections).toBe(connections);
  });

  it("ignore segments without any bytes, and answers that had to queue", () => {
    const pace = paceOf({});
    for (let at = 0; at < 1000; at += 1) {
      pace.measured({ bytes: 0, asked: at, firstByte: undefined, done: at + 1 });
    }
    expect(pace.connections).toBe(2);
    const near = paceOf({});
    near.measured({ bytes: MiB, asked: 1000, firstByte: 1020, done: 1021 });
    for (const asked of [1030, 1032, 1034]) {
      near.measured({ bytes: MiB, asked, firstByte: asked + 1, done: asked + 2 });
    }
    near.measured({ bytes: MiB, asked: 1040, firstByte: 1140, done: 1141 });
    expect(near.connections).toBe(2);
  });
});
