import { setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { BlockLimits } from "../../src/nbd/export-info.js";
import { RequestError } from "../../src/nbd/index.js";
import { fitsOneRequest, inPieces, readRange, readWhole } from "../../src/nbd/range.js";
import { pattern } from "./servers.js";

function limits(alignment: number, maxPayload: number, size: number): BlockLimits {
  return { alignment, maxPayload, size, maxEffect: 2 ** 32 - 65_536, maxStatus: 2 ** 32 - 65_536 };
}

const alignments = fc.constantFrom(64, 512, 4096);

describe("reading a range", () => {
  it("fills the target with requests within the limits", async () => {
    const cases = fc.record({
      alignment: alignments,
      blocks: fc.integer({ min: 1, max: 5 }),
      size: fc.integer({ min: 1, max: 10_000 }),
      cuts: fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.double({ min: 0, max: 1, noNaN: true })),
    });
    await fc.assert(
      fc.asyncProperty(cases, async ({ alignment, blocks, size, cuts }) => {
        const [a, b] = cuts.map((cut) => Math.floor(cut * size));
        const [from, to] = [Math.min(a ?? 0, b ?? 0), Math.max(a ?? 0, b ?? 0)];
        const bounds = limits(alignment, alignment * blocks, size);
        const target = Buffer.alloc(to - from, 0xee);
        const covered: [number, number][] = [];
        await readRange(bounds, from, target, async (offset, piece) => {
          expect(offset % alignment).toBe(0);
          expect(piece.length).toBeGreaterThan(0);
          expect(piece.length).toBeLessThanOrEqual(bounds.maxPayload);
          const end = offset + piece.length;
          expect(end % alignment === 0 || end === size).toBe(true);
          expect(fitsOneRequest(bounds, offset, piece.length)).toBe(true);
          covered.push([offset, end]);
          piece.set(pattern(offset, piece.length));
        });
        expect(target.equals(pattern(from, to - from))).toBe(true);
        covered.sort(([x], [y]) => x - y);
        for (let index = 1; index < covered.length; index++) {
          expect(covered[index]?.[0]).toBeGreaterThanOrEqual(covered[index - 1]?.[1] ?? 0);
        }
      }),
      { numRuns: 300 },
    );
  });

  it("doesn't settle while a request may still write to the target", async () => {
    let open = 0;
    const target = Buffer.alloc(10 * 512);
    const reading = readRange(limits(512, 512, 10_000), 512, target, async (offset) => {
      open += 1;
      await new Promise((resolve) => setTimeout(resolve, offset / 512));
      open -= 1;
      if (offset === 1024) throw new Error("second piece");
    });
    await expect(reading).rejects.toThrow("second piece");
    expect(open).toBe(0);
  });
});

describe("reading without fragments", () => {
  const overflow = (offset: number, length: number) =>
    new RequestError("NBD_REQUEST_FAILED", "too much", {
      command: "read",
      offset,
      length,
      errno: "EOVERFLOW",
      serverText: "",
    });

  it("falls back to pieces that are multiples of the block size", async () => {
    const lengths: number[] = [];
    const target = Buffer.alloc(200_000);
    await readWhole(limits(512, 2 ** 25, 2 ** 30), 0, target.length, async (offset, length) => {
      if (length > 65_536) throw overflow(offset, length);
      lengths.push(length);
      target.set(pattern(offset, length), offset);
    });
    expect(lengths).toEqual([65_536, 65_536, 65_536, 200_000 - 3 * 65_536]);
    expect(target.equals(pattern(0, 200_000))).toBe(true);
  });

  it("passes on any other failure", async () => {
    const other = new Error("other");
    let calls = 0;
    const reading = readWhole(limits(512, 2 ** 25, 2 ** 30), 0, 200_000, async () => {
      calls += 1;
      throw other;
    });
    await expect(reading).rejects.toBe(other);
    expect(calls).toBe(1);
  });
});

it("working in pieces covers everything once", async () => {
  const pieces: [number, number][] = [];
  await inPieces(10, 25, 10, async (offset, length) => {
    pieces.push([offset, length]);
  });
  expect(pieces).toEqual([
    [10, 10],
    [20, 10],
    [30, 5],
  ]);
  await inPieces(10, 0, 10, () => Promise.reject(new Error("never")));
});

it("working in pieces runs a limited number at a time", async () => {
  let open = 0;
  let most = 0;
  let begun = 0;
  await inPieces(0, 1000, 1, async () => {
    open += 1;
    begun += 1;
    most = Math.max(most, open);
    await turn();
    open -= 1;
  });
  expect([begun, most]).toEqual([1000, 32]);
});

it("working in pieces starts none after a failure, and waits for the running ones", async () => {
  let open = 0;
  let begun = 0;
  const working = inPieces(0, 1000, 1, async (offset) => {
    open += 1;
    begun += 1;
    await turn();
    if (offset !== 3) await turn();
    open -= 1;
    if (offset === 3) throw new Error("third");
  });
  await expect(working).rejects.toThrow("third");
  expect([begun, open]).toEqual([32, 0]);
});
