import { expect, it } from "vitest";
import { SeenParts } from "../../../src/backup/chain/seen-parts.js";

const KiB = 1024;

it("counts what is seen of a cluster, and forgets clusters that the walk has passed with hidden parts", () => {
  const parts = new SeenParts<string>();
  const large = { end: 2048 * KiB };
  expect(parts.add("large", { offset: 0, length: 4 * KiB, ...large })).toBe(4 * KiB);
  // Of each small cluster over the large one the second half is hidden.
  for (let i = 0; i < 31; i += 1) {
    const begin = 64 * KiB * (i + 1);
    const small = { end: begin + 64 * KiB };
    expect(parts.add(`small ${i}`, { offset: begin, length: 16 * KiB, ...small })).toBe(16 * KiB);
    expect(parts.add(`small ${i}`, { offset: begin + 16 * KiB, length: 16 * KiB, ...small })).toBe(32 * KiB);
    expect(parts.size).toBe(2);
  }
  expect(parts.add("large", { offset: 2040 * KiB, length: 8 * KiB, ...large })).toBe(12 * KiB);
  expect(parts.add("next", { offset: 2048 * KiB, length: KiB, end: 4096 * KiB })).toBe(KiB);
  expect(parts.size).toBe(1);
});
