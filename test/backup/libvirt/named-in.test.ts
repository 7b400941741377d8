import { expect, it } from "vitest";
import { isNamedIn } from "../../../src/backup/libvirt/named-in.js";

const BASE = "nbdpull-1a2b3c4d-20260102T030405678Z";

it.each([
  `checkpoint inconsistent: missing or broken bitmap '${BASE}' for disk 'vda'`,
  `Prüfpunkt inkonsistent: Bitmap „${BASE}“ für Platte „vda“ fehlt`,
  `point de contrôle incohérent : bitmap « ${BASE} » manquant pour « vda »`,
  `チェックポイント: ディスク「vda」のビットマップ「${BASE}」`,
  `vda: ${BASE}`,
])("finds names between whatever quotes: %s", (said) => {
  expect(isNamedIn(said, "vda")).toBe(true);
  expect(isNamedIn(said, BASE)).toBe(true);
  for (const other of ["vd", "da", "vdb", BASE.slice(0, -1), BASE.slice(8), ""]) {
    expect(isNamedIn(said, other)).toBe(false);
  }
});

it("takes no part of a longer name for one", () => {
  for (const said of ["disk 'vda1'", "disk 'xvda'", "disk 'vda-2'", "disk 'vda_2'", "'évda'", ""]) {
    expect(isNamedIn(said, "vda")).toBe(false);
  }
  expect(isNamedIn("disks 'vda1' and 'vda'", "vda")).toBe(true);
});
