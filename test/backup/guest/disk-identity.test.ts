import { link, mkdtemp, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { changedIdentity, diskIdentities } from "../../../src/backup/guest/disk-identity.js";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-identity-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

function xmlOf(disk: string): string {
  return `<domain><name>lab</name><uuid>02417a03-615c-4678-8d74-105cbe426935</uuid><devices><disk type='file'>${disk}<target dev='vda'/></disk></devices></domain>`;
}

describe("the identity of a disk", () => {
  it("is its source, format and serial number, and where the file lies", async () => {
    const path = join(folder, "vda.qcow2");
    await writeFile(path, "1");
    const xml = xmlOf(`<driver type='qcow2'/><source file='${path}'/><serial>WD-1</serial>`);
    const { dev, ino } = await stat(path);
    const here = (await diskIdentities({ xml, host: undefined })).get("vda");
    expect(here).toEqual({
      ...{ source: path, format: "qcow2", serial: "WD-1", inode: String(ino) },
      device: expect.stringMatching(/^\d+:\d+$/),
    });
    // As mountinfo has it.
    const [major, minor] = (here?.device ?? "").split(":").map(Number);
    expect(((major ?? 0) << 8) | (minor ?? 0)).toBe(dev);
    const there = (await diskIdentities({ xml, host: "other" })).get("vda");
    expect(there).toEqual({ source: path, format: "qcow2", serial: "WD-1", device: null, inode: null });
    expect(changedIdentity(here, there)).toBeUndefined();
    // A copy in its place is another file.
    await link(path, join(folder, "kept"));
    await writeFile(join(folder, "copy"), "1");
    await rename(join(folder, "copy"), path);
    expect(changedIdentity(here, (await diskIdentities({ xml, host: undefined })).get("vda"))).toBe("inode");
  });

  it("of a block device is the device's own number", async () => {
    const xml = xmlOf("<driver type='raw'/><source dev='/dev/loop0'/>");
    const identity = (await diskIdentities({ xml, host: undefined })).get("vda");
    expect(identity).toMatchObject({ source: "/dev/loop0", inode: null });
    if (
      await stat("/dev/loop0").then(
        () => true,
        () => false,
      )
    )
      expect(identity?.device).toBe("7:0");
  });

  it("lacks what is unknown or longer than a manifest takes, which agrees with everything", async () => {
    const xml = xmlOf(`<source file='/${"x".repeat(5000)}'/><serial>${"9".repeat(300)}</serial>`);
    const identity = (await diskIdentities({ xml, host: undefined })).get("vda");
    expect(identity).toEqual({ source: null, format: null, device: null, inode: null, serial: null });
    const other = { source: "/a", format: "raw", device: "1:2", inode: "3", serial: "4" };
    expect(changedIdentity(identity, other)).toBeUndefined();
    expect(changedIdentity(undefined, other)).toBeUndefined();
    expect(changedIdentity({ ...other, source: "/b", serial: "5" }, other)).toBe("source, serial");
  });
});
