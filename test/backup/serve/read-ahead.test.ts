import { expect, it } from "vitest";
import { ReadAhead, type ReadSource } from "../../../src/backup/serve/read-ahead.js";

const BLOCK = 512 * 1024;
const SIZE = 40 * BLOCK + 1000;

/** A disk whose bytes tell their place; the second half of each 8 blocks is zero. */
class Disk implements ReadSource {
  readonly size = SIZE;
  readonly asked: number[] = [];
  /** Offsets whose reads fail. */
  readonly bad = new Set<number>();

  async read(offset: number, length: number): Promise<Buffer> {
    this.asked.push(offset);
    await new Promise((resolve) => setImmediate(resolve));
    for (const bad of this.bad) {
      if (bad >= offset && bad < offset + length) throw new Error(`damaged at ${bad}`);
    }
    return contentOf(offset, length);
  }

  *extents(offset: number, length: number): Generator<{ length: number; state: string }> {
    yield { length, state: isZero(offset) ? "zero" : "data" };
  }
}

const isZero = (offset: number): boolean => Math.floor(offset / BLOCK) % 8 >= 4;

function contentOf(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = Math.ceil(offset / 512) * 512; at < offset + length - 4; at += 512) {
    if (!isZero(at)) bytes.writeUInt32BE(at / 512, at - offset);
  }
  return bytes;
}

it.each([[BLOCK], [64 * 1024], [3 * BLOCK], [100_352]])(
  "gives a reader that goes through the disk in steps of %i bytes what is there, and reads no data twice",
  async (step) => {
    const disk = new Disk();
    const reader = new ReadAhead(disk);
    for (let offset = 0; offset < SIZE; offset += step) {
      const length = Math.min(step, SIZE - offset);
      const bytes = await reader.read(offset, length);
      if (!bytes.equals(contentOf(offset, length))) throw new Error(`wrong bytes at ${offset}`);
    }
    if (step === BLOCK) {
      const data = disk.asked.filter((offset) => !isZero(offset));
      expect(new Set(data).size).toBe(data.length);
    }
  },
);

it("reads the next blocks while one is used, of data alone, and no more of them than it may", async () => {
  const disk = new Disk();
  const reader = new ReadAhead(disk);
  for (let block = 0; block < 3; block += 1) await reader.read(block * BLOCK, BLOCK);
  await new Promise((resolve) => setTimeout(resolve, 10));
  expect(disk.asked.toSorted((one, other) => one - other).map((offset) => offset / BLOCK)).toEqual([
    0, 1, 2, 3, 8, 9, 10,
  ]);
});

it("reads nothing ahead for reads in no order, and keeps several readers apart", async () => {
  const disk = new Disk();
  const reader = new ReadAhead(disk);
  for (const block of [30, 2, 17, 8, 25]) await reader.read(block * BLOCK, 4096);
  expect(disk.asked).toHaveLength(5);
  for (let block = 0; block < 20; block += 1) {
    const one = await reader.read(block * BLOCK, BLOCK);
    const other = await reader.read((20 + block) * BLOCK, BLOCK);
    expect(one.equals(contentOf(block * BLOCK, BLOCK))).toBe(true);
    expect(other.equals(contentOf((20 + block) * BLOCK, BLOCK))).toBe(true);
  }
});

it("fails where the damage is asked for, and nowhere before it", async () => {
  const disk = new Disk();
  const reader = new ReadAhead(disk);
  disk.bad.add(9 * BLOCK + 4096);
  const failed: number[] = [];
  for (let offset = 0; offset < 12 * BLOCK; offset += BLOCK / 8) {
    await reader.read(offset, BLOCK / 8).catch(() => failed.push(offset));
  }
  expect(failed).toEqual([9 * BLOCK]);
  expect(disk.asked.length).toBeGreaterThan(0);
});
