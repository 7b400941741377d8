import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { expect, it, vi } from "vitest";
import { GuestFish, nameAll, parseFileSystems } from "../../../src/backup/mount/guestfish.js";

it("takes no device whose name could be a command of guestfish, or of a shell, and names each", () => {
  const fit = [
    { device: "/dev/sda1", type: "ext4" },
    { device: "btrfsvol:/dev/sda2/@home", type: "btrfs" },
    { device: "/dev/md/host:0", type: "ext4" },
    { device: "/dev/sda3", type: "swap" },
  ];
  const hostile = [
    "/dev/vg/a;b: ext4",
    "/dev/vg/a | sh: ext4",
    "/dev/vg/../../etc: ext4",
    'btrfsvol:/dev/sda2/a"b: btrfs',
    "btrfsvol:/dev/sda2/a b: btrfs",
  ];
  const odd = ["!touch /root/x", "<! sh: strange type", "\u001b[2J"];
  const lines = [...fit.map(({ device, type }) => `${device}: ${type}`), ...hostile, ...odd, ""];
  expect(parseFileSystems(lines.join("\n"))).toEqual({
    found: fit,
    odd: [
      ...hostile.map((line) => ({ device: line.split(": ")[0], type: line.split(": ")[1] })),
      ...[odd[0], odd[1], "\\u{1b}[2J"].map((device) => ({ device, type: "unknown" })),
    ],
  });
});

it("fails at once where the guest makes the list of file systems endless", async () => {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull guestfish-"));
  try {
    const script = "#!/bin/sh\nyes /dev/sda1: ext4 | head -c 2000000\ncat >/dev/null\n";
    await writeFile(join(folder, "guestfish"), script);
    await chmod(join(folder, "guestfish"), 0o755);
    vi.stubEnv("PATH", `${folder}${delimiter}${process.env["PATH"]}`);
    const where = { path: join(folder, "files"), folder, socket: "sock", temporary: folder };
    const mounting = GuestFish.mount({ ...where, disks: ["vda"], point: "p" }, undefined);
    await expect(mounting).rejects.toThrow("prints more than 1048576 bytes");
  } finally {
    vi.unstubAllEnvs();
    await rm(folder, { recursive: true });
  }
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
