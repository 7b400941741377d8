import { describe, expect, it } from "vitest";
import { planPrune } from "../../../src/backup/prune/prune-plan.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";

/** Each disk's parent, by point ID. */
function points(parents: Record<string, Record<string, string | null>>): Manifest[] {
  return Object.entries(parents).map(
    ([id, disks]) =>
      ({
        id,
        disks: Object.entries(disks).map(([name, parent]) => ({ name, parent })),
      }) as unknown as Manifest,
  );
}

describe("the plan of a prune", () => {
  it("merges a row of dropped points into the kept one above them", () => {
    const chain = points({ a: { vda: null }, b: { vda: "a" }, c: { vda: "b" }, d: { vda: "c" } });
    const plan = planPrune(chain, new Set(["c", "d"]));
    expect(plan).toEqual({
      drop: ["a", "b"],
      needed: new Map(),
      merges: [{ disk: "vda", child: "c", dropped: ["b", "a"] }],
    });
  });

  it("drops without a merge what no kept point needs", () => {
    const chain = points({ a: { vda: null }, b: { vda: "a" }, c: { vda: null } });
    expect(planPrune(chain, new Set(["c"]))).toEqual({ drop: ["a", "b"], needed: new Map(), merges: [] });
  });

  it("ends a row at a kept point", () => {
    const chain = points({ a: { vda: null }, b: { vda: "a" }, c: { vda: "b" }, d: { vda: "c" } });
    expect(planPrune(chain, new Set(["b", "d"])).merges).toEqual([
      { disk: "vda", child: "b", dropped: ["a"] },
      { disk: "vda", child: "d", dropped: ["c"] },
    ]);
  });

  it("keeps a point that several kept ones are based on, even through dropped ones", () => {
    const tree = points({ a: { vda: null }, b: { vda: "a" }, c: { vda: "b" }, d: { vda: "a" } });
    const plan = planPrune(tree, new Set(["c", "d"]));
    expect(plan.drop).toEqual(["b"]);
    expect(plan.needed).toEqual(new Map([["a", ["c", "d"]]]));
    expect(plan.merges).toEqual([{ disk: "vda", child: "c", dropped: ["b"] }]);
  });

  it("does not count dropped points that nobody needs", () => {
    const tree = points({ a: { vda: null }, b: { vda: "a" }, c: { vda: "a" } });
    expect(planPrune(tree, new Set(["c"]))).toMatchObject({
      drop: ["a", "b"],
      merges: [{ disk: "vda", child: "c", dropped: ["a"] }],
    });
  });

  it("follows each disk's own chain, and keeps a whole point if one disk needs it", () => {
    const mixed = points({
      a: { vda: null, vdb: null },
      b: { vda: "a", vdb: null },
      c: { vda: "b", vdb: "b" },
      d: { vda: "b", vdb: "c" },
    });
    const plan = planPrune(mixed, new Set(["c", "d"]));
    expect(plan.drop).toEqual(["a"]);
    expect(plan.needed).toEqual(new Map([["b", ["c", "d"]]]));
    expect(plan.merges).toEqual([{ disk: "vda", child: "b", dropped: ["a"] }]);
  });
});
