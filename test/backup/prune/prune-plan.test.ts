import { describe, expect, it } from "vitest";
import { planPrune } from "../../../src/backup/prune/prune-plan.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";

/** Each disk's parent, by the point's id. */
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
  it("merges a row of dropped points into the one that stays above them", () => {
    const chain = points({ a: { vda: null }, b: { vda: "a" }, c: { vda: "b" }, d: { vda: "c" } });
    const plan = planPrune(chain, new Set(["c", "d"]));
    expect(plan).toEqual({
      drop: ["a", "b"],
      needed: new Map(),
      merges: [{ disk: "vda", child: "c", dropped: ["b", "a"] }],
    });
  });

  it("drops what nobody needs without a merge", () => {
    const chain = points({ a: { vda: null }, b: { vda: "a" }, c: { vda: null } });
    expect(planPrune(chain, new Set(["c"]))).toEqual({ drop: ["a", "b"], needed: new Map(), merges: [] });
  });

  it("stops a row at a point that stays", () => {
    const chain = points({ a: { vda: null }, b: { vda: "a" }, c: { vda: "b" }, d: { vda: "c" } });
    expect(planPrune(chain, new Set(["b", "d"])).merges).toEqual([
      { disk: "vda", child: "b", dropped: ["a"] },
      { disk: "vda", child: "d", dropped: ["c"] },
    ]);
  });

  it("leaves a point on which several kept ones stand, even over dropped ones", () => {
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

  it("goes by each disk's own chain, and keeps a point whole where one disk needs it", () => {
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
