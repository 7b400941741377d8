import { expect, it } from "vitest";
import { firstAllocated } from "../../../src/backup/qcow2/format.js";

it.each([
  [false, 8],
  [true, 16],
])("an entry that isn't all zeroes is found by any byte of it (extended: %s)", (extended, bytes) => {
  for (let byte = 0; byte < bytes; byte += 1) {
    const table = Buffer.alloc(10 * bytes);
    table[7 * bytes + byte] = 0x80 >> (byte % 8);
    expect(firstAllocated(table, 0, 10, extended)).toBe(7);
    expect(firstAllocated(table, 7, 10, extended)).toBe(7);
    expect(firstAllocated(table, 8, 10, extended)).toBe(10);
    expect(firstAllocated(table, 0, 7, extended)).toBe(7);
  }
});
