import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { extentsForReply } from "../../../src/nbd/server/block-status.js";

describe("extents of a reply", () => {
  const described = [1, 1, 0, 1].map((flags) => ({ length: 10, flags }));

  test("equal neighbours are merged and the overshoot is cut off", () => {
    expect(extentsForReply(() => described, 0, 35, 9)).toEqual([
      { length: 20, flags: 1 },
      { length: 10, flags: 0 },
      { length: 5, flags: 1 },
    ]);
  });

  test("the reply ends with the last whole extent that fits", () => {
    expect(extentsForReply(() => described, 0, 35, 2)).toEqual([
      { length: 20, flags: 1 },
      { length: 10, flags: 0 },
    ]);
  });

  test("no more of a description is read than one reply needs", () => {
    let asked = 0;
    const endless = function* () {
      for (;;) yield { length: 10, flags: asked++ };
    };
    expect(extentsForReply(endless, 0, 1000, 3)).toHaveLength(3);
    expect(asked).toBe(4);
  });

  test("a reply is a true, tight prefix of what was described", () => {
    const extent = fc.record({ length: fc.integer({ min: 1, max: 9 }), flags: fc.nat(2) });
    const spread = (extents: readonly { length: number; flags: number }[]) =>
      extents.flatMap(({ length, flags }) => new Array<number>(length).fill(flags));
    fc.assert(
      fc.property(
        fc.array(extent),
        fc.integer({ min: 1, max: 60 }),
        fc.integer({ min: 1, max: 5 }),
        (list, length, limit) => {
          const reply = extentsForReply(() => list, 0, length, limit);
          const truth = spread(list).slice(0, length);
          expect(spread(reply)).toEqual(truth.slice(0, spread(reply).length));
          expect(reply.length).toBeLessThanOrEqual(limit);
          expect(reply.some(({ flags }, index) => flags === reply[index + 1]?.flags)).toBe(false);
          if (reply.length < limit) expect(spread(reply)).toHaveLength(truth.length);
        },
      ),
    );
  });
});
