import { expect, it } from "vitest";
import { leftToMend } from "../../bin/left-to-mend.js";
import type { Mend } from "../../src/backup/repair/repair.js";
import type { Finding } from "../../src/backup/verify/verify.js";

const K64 = 65_536;
const damage = (guestOffset?: number, length?: number): Finding => ({
  ...{ point: "p", disk: "vda", severity: "damage", message: "" },
  ...(guestOffset === undefined ? {} : { guestOffset, length }),
});
const cluster = (guestOffset: number): Mend => ({
  ...{ point: "p", disk: "vda", what: "cluster", guestOffset, length: K64, from: "" },
});
const left = (findings: readonly Finding[], mends: readonly Mend[]): string[] =>
  leftToMend([{ id: "p", findings }], mends);

it("leaves a point out only if each damaged cluster of each finding was mended", () => {
  expect(left([damage(K64, 2 * K64)], [cluster(K64), cluster(2 * K64)])).toEqual([]);
  expect(left([damage(K64, 2 * K64)], [cluster(K64), cluster(3 * K64)])).toEqual(["p"]);
  expect(left([damage(K64, 2 * K64)], [{ ...cluster(K64), disk: "vdb" }])).toEqual(["p"]);
  expect(left([damage(0, K64)], [{ ...cluster(0), point: "other" }])).toEqual(["p"]);
});

it("takes what is said of a file as a whole for mended by a new digest file, and a leak for no damage", () => {
  const digests: Mend = { point: "p", disk: "vda", what: "digests", from: "" };
  expect(left([damage()], [digests])).toEqual([]);
  expect(left([damage()], [cluster(0)])).toEqual(["p"]);
  expect(left([{ ...damage(), severity: "leak" }], [])).toEqual([]);
});
