import { mkdir, mkdtemp, rm, statfs, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { freeBytes, freeBytesOfUsers } from "../../../src/backup/host/free-bytes.js";
import { attachLoop, describeWithLoop } from "../../support/loop-device.js";
import { findTool } from "../../support/tools.js";

const MiB = 1024 * 1024;

describeWithLoop("the room on a file system that reserves some for root", () => {
  it("is all of it for root, who can write that much, and less for others", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-free-"));
    try {
      const image = join(folder, "image");
      const mounted = join(folder, "mounted");
      await writeFile(image, "");
      await truncate(image, 16 * MiB);
      await mkdir(mounted);
      await execa(findTool("mkfs.ext4") ?? "mkfs.ext4", ["-q", "-F", "-m", "50", image]);
      await using device = await attachLoop(image);
      await execa(findTool("mount") ?? "mount", [device.path, mounted]);
      try {
        const { bfree, bavail, bsize } = await statfs(mounted);
        expect(await freeBytesOfUsers(mounted)).toBe(bavail * bsize);
        expect(await freeBytes(mounted)).toBe(bfree * bsize);
        expect(bfree - bavail).toBeGreaterThan((5 * MiB) / bsize);
        await writeFile(join(mounted, "filler"), Buffer.alloc(bavail * bsize + 4 * MiB));
        expect(await freeBytesOfUsers(mounted)).toBe(0);
        expect(await freeBytes(mounted)).toBeGreaterThan(0);
      } finally {
        await execa(findTool("umount") ?? "umount", [mounted]);
      }
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
