import { expect, it } from "vitest";
import { proofText } from "../../bin/proof-text.js";

it("says how much of a base was compared, or that no data was there to be compared", () => {
  const rest = { seed: "5f1c", changed: undefined, differing: undefined };
  const proof = { disk: "vda", parent: "20261120T010309.871Z", compared: 64, unread: 0, ...rest };
  expect(proofText([proof], "vda")).toBe("; its base fits in 64 clusters (seed 5f1c)");
  const none = "; its base has no unchanged data to compare";
  expect(proofText([{ ...proof, compared: 0 }], "vda")).toBe(none);
  expect(proofText([{ ...proof, compared: 0, unread: 2 }], "vda")).toContain("2 could not be read");
  expect(proofText([proof], "vdb")).toBe("");
});
