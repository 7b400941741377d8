import { expect, it } from "vitest";
import { nameAll, parseFileSystems } from "../../../src/backup/mount/guestfish.js";

it("takes no device whose name could be a command of guestfish, or of a shell", () => {
  const hostile = [
    "/dev/sda1: ext4",
    "/dev/vg/a;b: ext4",
    "/dev/vg/a | sh: ext4",
    "/dev/vg/../../etc: ext4",
    "!touch /root/x",
    'btrfsvol:/dev/sda2/a"b: btrfs',
    "btrfsvol:/dev/sda2/a b: btrfs",
    "btrfsvol:/dev/sda2/@home: btrfs",
    "/dev/sda3: swap",
    "<! sh: ext4",
    "",
  ];
  expect(parseFileSystems(hostile.join("\n"))).toEqual([
    { device: "/dev/sda1", type: "ext4" },
    { device: "/dev/sda3", type: "swap" },
  ]);
});

it("names file systems by the point's disks, each by another name", () => {
  const names = (disks: readonly string[], ...devices: readonly string[]): string[] =>
    nameAll(
      devices.map((device) => ({ device, type: "ext4" })),
      disks,
    ).map(({ name }) => name);
  expect(names(["vda", "sdb"], "/dev/sda1", "/dev/sdb", "/dev/sdb12", "/dev/vg/root")).toEqual([
    "vda1",
    "sdb",
    "sdb12",
    "vg-root",
  ]);
  expect(names(["vda"], "/dev/a-b/c", "/dev/a/b-c", "btrfsvol:/dev/sda2/home", "/dev/sdx1")).toEqual([
    "a-b-c",
    "a-b-c.2",
    "vda2-home",
    "sdx1",
  ]);
  const many = Array.from({ length: 30 }, (_, i) => `disk${i}`);
  expect(names(many, "/dev/sdz1", "/dev/sdaa1", "/dev/sdad")).toEqual(["disk251", "disk261", "disk29"]);
});
