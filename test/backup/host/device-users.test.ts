import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type BlockDevice, blockDeviceAt, deviceState } from "../../../src/backup/host/block-device.js";
import { writersOf } from "../../../src/backup/host/device-users.js";
import { attachLoop, describeWithLoop, type LoopDevice } from "../../support/loop-device.js";

const MiB = 1024 * 1024;

describeWithLoop("the users of a block device", () => {
  let folder: string;
  let loop: LoopDevice;
  let device: BlockDevice;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "nbdpull-device-"));
    await writeFile(join(folder, "disk"), Buffer.alloc(16 * MiB));
    loop = await attachLoop(join(folder, "disk"), "--partscan");
    device = (await blockDeviceAt(loop.path)) as BlockDevice;
  });
  afterAll(async () => {
    await loop[Symbol.asyncDispose]();
    await rm(folder, { recursive: true });
  });

  /** Runs while a process has the device at `path` open, as a file system of its own shows it. */
  async function whileOpen(mode: "<" | "<>", number: string, body: (pid: number) => Promise<void>) {
    const script = `mount -t tmpfs none /dev && mknod /dev/disk b ${number.replace(":", " ")} && exec sleep 60 ${mode}/dev/disk`;
    const process = execa("unshare", ["--mount", "sh", "-c", script], { reject: false });
    const pid = process.pid ?? 0;
    await expect
      .poll(() => execa("readlink", [`/proc/${pid}/fd/0`]).then(({ stdout }) => stdout))
      .toBe("/dev/disk");
    try {
      await body(pid);
    } finally {
      process.kill();
      await process;
    }
  }

  it("are those who may write to it, by a node of their own too, and not those who read", async () => {
    expect(await writersOf([device])).toEqual([]);
    await whileOpen("<", device.number, async () => expect(await writersOf([device])).toEqual([]));
    await whileOpen("<>", device.number, async (pid) => {
      expect(await writersOf([device])).toEqual([`sleep (process ${pid}) has ${device.path} open`]);
    });
    expect(await writersOf([device])).toEqual([]);
  });

  it("are those of its partitions, and of the disk that it is a partition of; and mounts", async ({
    skip,
  }) => {
    if ((await execa("addpart", [device.path, "1", "2048", "8192"], { reject: false })).failed) {
      skip("no partitions can be made here");
    }
    try {
      const part = (await blockDeviceAt(`${device.path}p1`)) as BlockDevice;
      await whileOpen("<>", part.number, async () => expect(await writersOf([device])).toHaveLength(1));
      await whileOpen("<>", device.number, async () => expect(await writersOf([part])).toHaveLength(1));
      await execa("mkfs.ext4", ["-q", part.path]);
      const place = join(folder, "mounted");
      await execa("mkdir", [place]);
      await execa("mount", [part.path, place]);
      const found = [await writersOf([device]), await writersOf([part])];
      await execa("umount", [place]);
      const mounted = `the system has ${part.path} in use (mounted, swap, RAID, or exported)`;
      expect(found).toEqual([[mounted], [mounted]]);
    } finally {
      await execa("delpart", [device.path, "1"], { reject: false });
    }
  });

  it("leave a trace if they write, and none if they read", async () => {
    const states = [await deviceState(device)];
    await using file = await open(device.path, "r+");
    await file.read(Buffer.alloc(MiB), 0, MiB, 4 * MiB);
    expect(await deviceState(device)).toBe(states[0]);
    // It is in the page cache only until `deviceState` flushes that.
    await file.write(Buffer.alloc(512, 0x11), 0, 512, 8 * MiB);
    states.push(await deviceState(device));
    expect(
      (await execa("blkdiscard", ["-o", "0", "-l", String(MiB), device.path], { reject: false })).failed,
    ).toBe(false);
    states.push(await deviceState(device));
    expect(new Set(states).size).toBe(3);
    expect(await deviceState(device)).toBe(states[2]);
  });
});
