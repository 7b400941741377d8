import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { cleanCells } from "../../../src/backup/export/clean-cells.js";
import type { NbdClient, StatusBatch } from "../../../src/nbd/index.js";
import { collect } from "../../support/collect.js";

const CELL = 8;

/** A client whose server reports the two strings, one character a byte: `x` is dirty, `0` reads as zeroes. */
function clientOf(dirty: string, zero: string, batches: readonly number[]): NbdClient {
  const size = dirty.length;
  const runsOf = (text: string, mark: string, flag: number, from: number, to: number) => {
    const ends: number[] = [];
    const flags: number[] = [];
    for (let at = from; at < to; at += 1) {
      if (at + 1 < to && text[at] === text[at + 1]) continue;
      ends.push(at + 1);
      flags.push(text[at] === mark ? flag : 0);
    }
    return { ends: Float64Array.from(ends), flags: Float64Array.from(flags) };
  };
  async function* blockStatus(): AsyncGenerator<StatusBatch, void, void> {
    const cuts = [...new Set([...batches.filter((cut) => cut > 0 && cut < size), size])].sort(
      (a, b) => a - b,
    );
    let offset = 0;
    for (const end of cuts) {
      const runs = new Map([
        ["qemu:dirty-bitmap:b", runsOf(dirty, "x", 1, offset, end)],
        ["base:allocation", runsOf(zero, "0", 2, offset, end)],
      ]);
      yield { offset, length: end - offset, runs, contexts: new Map() };
      offset = end;
    }
  }
  return { export: { size }, blockStatus } as unknown as NbdClient;
}

async function cellsOf(dirty: string, zero: string, batches: readonly number[]): Promise<string> {
  const { signal } = new AbortController();
  const found = cleanCells(clientOf(dirty, zero, batches), { bitmap: "b", cellBytes: CELL, signal });
  const cells = new Array<string>(Math.ceil(dirty.length / CELL)).fill("x");
  let reached = 0;
  for (const { offset, length, readAsZeroes } of await collect(found)) {
    expect(offset).toBeGreaterThanOrEqual(reached);
    expect(offset % CELL).toBe(0);
    reached = offset + length;
    if (reached !== dirty.length) expect(reached % CELL).toBe(0);
    cells.fill(readAsZeroes ? "0" : "-", offset / CELL, Math.ceil(reached / CELL));
  }
  return cells.join("");
}

describe("the clean cells of an export", () => {
  it("are those without a dirty byte, and of zeroes those without another byte", async () => {
    const dirty = `${"-".repeat(8)}${"-".repeat(7)}x${"-".repeat(19)}`;
    const zero = `${"0".repeat(20)}-${"0".repeat(14)}`;
    expect(await cellsOf(dirty, zero, [3, 17])).toBe("0x-00");
  });

  it("are found whatever the places at which the server cuts its answer", async () => {
    const size = fc.integer({ min: 1, max: 70 });
    const story = size.chain((length) =>
      fc.record({
        dirty: fc.string({
          unit: fc.constantFrom("-", "-", "-", "-", "-", "x"),
          minLength: length,
          maxLength: length,
        }),
        zero: fc.string({ unit: fc.constantFrom("0", "0", "0", "-"), minLength: length, maxLength: length }),
        batches: fc.array(fc.integer({ min: 1, max: 69 }), { maxLength: 6 }),
      }),
    );
    await fc.assert(
      fc.asyncProperty(story, async ({ dirty, zero, batches }) => {
        const expected = (dirty.match(/.{1,8}/g) ?? []).map((cell, i) => {
          const zeroes = zero.slice(i * CELL, (i + 1) * CELL);
          if (cell.includes("x")) return "x";
          return zeroes.includes("-") ? "-" : "0";
        });
        expect(await cellsOf(dirty, zero, batches)).toBe(expected.join(""));
      }),
      { numRuns: 300 },
    );
  });
});
