import { randomBytes } from "node:crypto";
import { setImmediate as turn } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { KeptPieces } from "../../../src/backup/storage/kept-pieces.js";
import { ReadAhead } from "../../../src/backup/storage/read-ahead.js";

const KiB = 1024;
const MiB = 1024 * KiB;

/** A file in memory that counts what is asked of it. */
function fileOf(bytes: Buffer, kept = new KeptPieces(8 * MiB)) {
  const asked: { position: number; length: number }[] = [];
  const state = { fails: false };
  const file = new ReadAhead(
    bytes.length,
    async (target, position) => {
      asked.push({ position, length: target.length });
      await turn();
      if (state.fails) throw new Error("the store is away");
      expect(bytes.copy(target, 0, position)).toBe(target.length);
    },
    kept,
  );
  return { file, asked, state };
}

describe("reading ahead", () => {
  const bytes = randomBytes(24 * MiB + 123);

  it("reads a file from front to back by few requests that grow", async () => {
    const { file, asked } = fileOf(bytes);
    const piece = Buffer.alloc(64 * KiB);
    for (let at = 0; at < bytes.length; at += piece.length) {
      const read = await file.read(piece, at);
      expect(piece.subarray(0, read).equals(bytes.subarray(at, at + piece.length))).toBe(true);
    }
    expect(asked.slice(0, 4).map(({ length }) => length / KiB)).toEqual([64, 128, 256, 512]);
    expect(asked.length).toBeLessThan(15);
    expect(asked.reduce((sum, { length }) => sum + length, 0)).toBe(bytes.length);
    expect(await file.read(piece, bytes.length)).toBe(0);
  });

  it("asks at random for no more than a read needs, and for nothing twice", async () => {
    const { file, asked } = fileOf(bytes);
    const places = [5, 20, 11, 2].map((n) => n * MiB);
    for (const at of [...places, ...places]) {
      const piece = Buffer.alloc(10);
      await file.read(piece, at);
      expect(piece.equals(bytes.subarray(at, at + 10))).toBe(true);
    }
    expect(asked).toEqual(places.map((position) => ({ position, length: 64 * KiB })));
  });

  it("passes large reads on", async () => {
    const { file, asked } = fileOf(bytes);
    const piece = Buffer.alloc(3 * MiB);
    await file.read(piece, 7);
    expect(piece.equals(bytes.subarray(7, 7 + 3 * MiB))).toBe(true);
    expect(asked).toEqual([{ position: 7, length: 3 * MiB }]);
  });

  it("gives the right bytes to many who read at once, with memory for few", async () => {
    const kept = new KeptPieces(512 * KiB);
    const files = [fileOf(bytes, kept), fileOf(bytes.subarray(1000), kept)];
    const reader = async (seed: number): Promise<void> => {
      for (let round = 0; round < 60; round += 1) {
        const { file } = files[(seed + round) % 2] as (typeof files)[number];
        const whole = (seed + round) % 2 === 0 ? bytes : bytes.subarray(1000);
        const at = (seed * 7_919 * KiB + round * 61 * KiB) % whole.length;
        const piece = Buffer.alloc(1 + ((seed * round * 977) % (200 * KiB)));
        const read = await file.read(piece, at);
        expect(piece.subarray(0, read).equals(whole.subarray(at, at + piece.length))).toBe(true);
      }
    };
    await Promise.all(Array.from({ length: 16 }, (_, seed) => reader(seed)));
  });

  it("asks again after a failure, which it passes on to all who wait for it", async () => {
    const { file, asked, state } = fileOf(bytes);
    state.fails = true;
    const reads = [1, 2, 3].map((at) => file.read(Buffer.alloc(10), at));
    for (const outcome of await Promise.allSettled(reads)) expect(outcome.status).toBe("rejected");
    expect(asked).toHaveLength(1);
    state.fails = false;
    const piece = Buffer.alloc(10);
    await file.read(piece, 2);
    expect(piece.equals(bytes.subarray(2, 12))).toBe(true);
    expect(asked).toHaveLength(2);
  });

  it("keeps nothing of a file that was closed", async () => {
    const { file, asked } = fileOf(bytes);
    await file.read(Buffer.alloc(10), 0);
    file.forget();
    await file.read(Buffer.alloc(10), 0);
    expect(asked).toHaveLength(2);
  });
});
