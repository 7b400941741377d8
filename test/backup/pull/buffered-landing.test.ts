import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { maskStretches, type PlannedRun, slotsOf } from "../../../src/backup/image/image.js";
import { BufferPool } from "../../../src/backup/pull/buffer-pool.js";
import { BufferedLanding } from "../../../src/backup/pull/buffered-landing.js";
import type { Segment } from "../../../src/backup/pull/segment.js";

const CLUSTER = 16 * 1024;
const RUNS: readonly PlannedRun[] = [
  { kind: "data", cluster: 3, count: 2 },
  { kind: "zero", cluster: 6, count: 4 },
  { kind: "partial", cluster: 11, count: 1, dataMask: 0b1011_0000, zeroMask: 0b1 },
  { kind: "partial", cluster: 12, count: 1, dataMask: 0, zeroMask: 0b1 },
  { kind: "data", cluster: 13, count: 1 },
];
const SEGMENT: Segment = { index: 0, runs: RUNS, firstRank: 0, clusters: 4 };
/** The last cluster is truncated. */
const GEOMETRY = { clusterSize: CLUSTER, virtualSize: 14 * CLUSTER - 512 };
const DISK = Buffer.from(
  Uint8Array.from({ length: 14 * CLUSTER }, (_, i) => 1 + ((i * 31 + (i >> 9)) % 255)),
);

/** The expected slots, up to the end of the disk. */
function expectedSlots(): Buffer {
  const slots = Buffer.alloc(SEGMENT.clusters * CLUSTER);
  let slot = 0;
  for (const run of RUNS) {
    const from = run.cluster * CLUSTER;
    if (run.kind === "data") DISK.copy(slots, slot * CLUSTER, from, from + run.count * CLUSTER);
    else if (run.kind === "partial") {
      for (const { offset, length } of maskStretches(run.dataMask, CLUSTER))
        DISK.copy(slots, slot * CLUSTER + offset, from + offset, from + offset + length);
    }
    slot += slotsOf(run);
  }
  return slots.subarray(0, slots.length - 512);
}

describe("BufferedLanding", () => {
  it("puts pieces of any size and order into the slots of a used buffer, and drops what is read through", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.nat(DISK.length - 512), { maxLength: 12 }),
        fc.infiniteStream(fc.nat(1000)),
        async (cuts, order) => {
          const buffer = new ArrayBuffer(SEGMENT.clusters * CLUSTER + 512);
          new Uint8Array(buffer).fill(0xee);
          const filled: ArrayBuffer[] = [];
          const landing = new BufferedLanding(SEGMENT, GEOMETRY, buffer, (full) => {
            filled.push(full);
            return Promise.resolve({ outcomes: [], buffer: full });
          });
          expect(landing.firstByte).toBeUndefined();
          const edges = [0, ...cuts, GEOMETRY.virtualSize].sort((a, b) => a - b);
          const pieces = edges.slice(1).map((end, i) => ({ start: edges[i] ?? 0, end }));
          const shuffled = pieces
            .map((piece) => ({ piece, key: order.next().value }))
            .sort((a, b) => a.key - b.key);
          // The whole disk as one read: everything between the ranges is read through.
          for (const { piece } of shuffled) landing.data(piece.start, DISK.subarray(piece.start, piece.end));
          await landing.outcome();
          expect(filled).toEqual([buffer]);
          const got = Buffer.from(buffer, 0, SEGMENT.clusters * CLUSTER - 512);
          expect(got.equals(expectedSlots())).toBe(true);
          expect(landing.firstByte).toBeGreaterThan(0);
        },
      ),
      { numRuns: 60 },
    );
  });

  it("believes the server about zeroes, and keeps the later bytes if some come twice", async () => {
    const buffer = new ArrayBuffer(SEGMENT.clusters * CLUSTER);
    new Uint8Array(buffer).fill(0xee);
    const landing = new BufferedLanding(SEGMENT, GEOMETRY, buffer, (full) =>
      Promise.resolve({ outcomes: [], buffer: full }),
    );
    landing.data(0, DISK.subarray(0, GEOMETRY.virtualSize));
    landing.zeroes(0, GEOMETRY.virtualSize);
    landing.data(4 * CLUSTER, Buffer.from([7]));
    await landing.outcome();
    const expected = Buffer.alloc(SEGMENT.clusters * CLUSTER - 512);
    expected[CLUSTER] = 7;
    expect(Buffer.from(buffer, 0, expected.length).equals(expected)).toBe(true);
  });
});

describe("BufferPool", () => {
  const never = new AbortController().signal;

  it("grants only as many buffers as it has, in the order of the requests", async () => {
    const pool = new BufferPool(512, 2);
    const first = await pool.take(never);
    const second = await pool.take(never);
    expect([first.byteLength, second.byteLength]).toEqual([512, 512]);
    const granted: number[] = [];
    const waiting = [0, 1, 2].map((i) =>
      pool.take(never).then((buffer) => {
        granted.push(i);
        return buffer;
      }),
    );
    await sleep(5);
    expect(granted).toEqual([]);
    pool.give(second);
    expect(await waiting[0]).toBe(second);
    expect(granted).toEqual([0]);
    pool.give(first);
    pool.give(second);
    await Promise.all(waiting);
    expect(granted).toEqual([0, 1, 2]);
  });

  it("skips requests that were aborted", async () => {
    const pool = new BufferPool(512, 1);
    const buffer = await pool.take(never);
    const stop = new AbortController();
    const impatient = pool.take(stop.signal);
    const patient = pool.take(never);
    stop.abort(new Error("enough"));
    await expect(impatient).rejects.toThrow("enough");
    pool.give(buffer);
    expect(await patient).toBe(buffer);
    await expect(pool.take(stop.signal)).rejects.toThrow("enough");
  });

  it("rejects pending and later requests once it is closed", async () => {
    const pool = new BufferPool(512, 1);
    await pool.take(never);
    const waiting = pool.take(never);
    pool.close(new Error("broken"));
    await expect(waiting).rejects.toThrow("broken");
    pool.close(new Error("again"));
    await expect(pool.take(never)).rejects.toThrow("broken");
  });
});
