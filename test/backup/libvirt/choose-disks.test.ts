import { describe, expect, it } from "vitest";
import { disksLeftOut, disksToBackUp } from "../../../src/backup/libvirt/choose-disks.js";
import type { DomainDefinition } from "../../../src/backup/libvirt/documents/domain-xml.js";

const disk = {
  device: "disk",
  type: "file",
  source: "/i",
  format: "qcow2",
  readOnly: false,
  hasIothread: false,
} as const;
const domain: DomainDefinition = {
  name: "web",
  uuid: "8a1b0c7e-0d2e-4b6f-9c1a-3f5d7e9b1c2d",
  confinedBy: [],
  disks: [
    { ...disk, target: "vda" },
    { ...disk, target: "vdb" },
    { ...disk, target: "vdc", readOnly: true },
    { ...disk, target: "vdd", source: undefined },
    { ...disk, target: "sda", device: "cdrom" },
    { ...disk, target: "fda", device: "floppy" },
    { ...disk, target: "fdb", device: "floppy", source: undefined },
  ],
};
const choose = (include: string[], exclude: string[]): string[] =>
  disksToBackUp(domain, { include, exclude }).map(({ target }) => target);

describe("the choice of disks", () => {
  it("takes all writable disks with media, except the excluded ones", () => {
    expect(choose([], [])).toEqual(["vda", "vdb"]);
    expect(choose([], ["vda"])).toEqual(["vdb"]);
    expect(choose(["vdb", "vda"], ["vda"])).toEqual(["vdb"]);
  });

  it("lets a disk be excluded that the domain lacks: of several domains another may have it", () => {
    expect(choose([], ["vdb", "vdx"])).toEqual(["vda"]);
  });

  it("takes a floppy that is included by name, and else says that it is left out, as read-only media are", () => {
    const leftOut = (include: string[], exclude: string[]): [string, boolean][] =>
      disksLeftOut(domain, { include, exclude }).map(({ disk, isWritable }) => [disk, isWritable]);
    expect(choose(["fda"], [])).toEqual(["fda"]);
    expect(leftOut([], [])).toEqual([
      ["vdc", false],
      ["sda", false],
      ["fda", true],
    ]);
    expect(leftOut([], ["fda", "sda"])).toEqual([["vdc", false]]);
    expect(leftOut(["vda"], [])).toEqual([]);
  });

  it("leaves a transient disk of a running domain out, and can't be told to take it", () => {
    const running: DomainDefinition = {
      ...domain,
      id: 3,
      disks: [
        { ...disk, target: "vda" },
        { ...disk, target: "vde", transient: true },
      ],
    };
    const none = { include: [], exclude: [] };
    expect(disksToBackUp(running, none).map(({ target }) => target)).toEqual(["vda"]);
    expect(disksLeftOut(running, none)).toMatchObject([{ disk: "vde", isWritable: true }]);
    expect(() => disksToBackUp(running, { include: ["vde"], exclude: [] })).toThrow(
      expect.objectContaining({ code: "E_DISK_UNFIT" }),
    );
  });

  it.each([
    [["vdx"], [], "E_NO_SUCH_DISK"],
    [["vdc"], [], "E_DISK_UNFIT"],
    [["vdd"], [], "E_DISK_UNFIT"],
    [["sda"], [], "E_DISK_UNFIT"],
    [["fdb"], [], "E_DISK_UNFIT"],
    [[], ["vda", "vdb"], "E_NO_DISKS"],
  ])("refuses to include %j and exclude %j: %s", (include, exclude, code) => {
    expect(() => choose(include, exclude)).toThrow(expect.objectContaining({ code }));
  });
});
