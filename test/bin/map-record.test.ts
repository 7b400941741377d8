import fc from "fast-check";
import { expect, it } from "vitest";
import { MapRecord } from "../../bin/map-record.js";

/** Numbers of all orders of magnitude, and near powers of ten. */
const number = fc.oneof(
  fc.maxSafeNat(),
  fc.nat(200_000_000),
  fc.tuple(fc.nat(15), fc.integer({ min: -2, max: 2 })).map(([power, by]) => Math.max(0, 10 ** power + by)),
);

it.each([0, 14])("writes the same text as String and padStart: width %i", (width) => {
  fc.assert(
    fc.property(fc.array(fc.tuple(number, number), { maxLength: 50 }), (extents) => {
      const record = new MapRecord({ before: "<", between: " to ", after: ">\n", width });
      const padded = (value: number): string => String(value).padStart(width);
      for (const [offset, length] of extents) {
        const text = Buffer.from(record.of(offset, length)).toString();
        expect(text).toBe(`<${padded(offset)} to ${padded(length)}>\n`);
      }
    }),
    { numRuns: 2000 },
  );
});
