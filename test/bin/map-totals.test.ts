import { expect, it } from "vitest";
import { MapTotals } from "../../bin/map-totals.js";

it("counts a thousand types one by one and the rest together, however many there are", () => {
  const totals = new MapTotals("qemu:allocation-depth");
  for (let depth = 0; depth < 200_000; depth += 1) totals.add(512, depth);
  totals.add(1024, 1);
  expect(totals.all).toHaveLength(1001);
  expect(totals.all.slice(0, 3)).toEqual([
    { type: 0, description: "absent", bytes: 512, extents: 1 },
    { type: 1, description: "local", bytes: 1536, extents: 2 },
    { type: 2, description: "backing depth 2", bytes: 512, extents: 1 },
  ]);
  expect(totals.all.at(-1)).toEqual({
    type: undefined,
    description: "other types",
    bytes: 199_000 * 512,
    extents: 199_000,
  });
});
