import { chown, mkdir, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type ToolUsers, toolUsers } from "../../src/backup/guest/confined-tool.js";
import type { DiskFile } from "../../src/backup/guest/qemu-img.js";
import { endServersIn, type ImageServer } from "../../src/backup/guest/qemu-nbd.js";
import { StoppedDisk } from "../../src/backup/guest/stopped-disk.js";
import { attachLoop, describeWithLoop } from "../support/loop-device.js";
import { createImage, qemuImg, qemuIo } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;

let folder: string;
let users: ToolUsers | undefined;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-image-"));
  users = await toolUsers(undefined);
  await mkdir(join(folder, "qemu"));
  if (users) await chown(join(folder, "qemu"), 0, users.group);
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function newImage(format: "qcow2" | "raw", name = "disk"): Promise<DiskFile> {
  const path = join(folder, `${name}, "odd" & more.${format}`);
  await createImage(path, { format, size: 4 * MiB });
  await qemuIo(path, format, "write -P 0x21 1M 64k");
  return { path, kind: "file", format };
}

let sockets = 0;

/** The disk of a domain whose QEMU runs as this user, and whose definition says nothing of the chain. */
async function open(image: DiskFile): Promise<StoppedDisk> {
  const newSocket = (): string => {
    sockets += 1;
    return join(folder, "qemu", `${sockets}.sock`);
  };
  const options = { users, newSocket, signal: undefined };
  return await StoppedDisk.open(image, { backing: undefined, dataFile: undefined }, options);
}

async function serve(image: DiskFile, bitmap?: string): Promise<ImageServer> {
  return await (await open(image)).serve({ name: "vda", bitmap });
}

const code = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => undefined,
    (error: { code?: unknown }) => error.code,
  );

async function processes(): Promise<string> {
  return (await execa("pgrep", ["-f", `^qemu-nbd.*${folder}/`], { reject: false })).stdout;
}

describeWith(["qemu-nbd", "qemu-img", "qemu-io"], "a server on the image of a stopped domain", () => {
  it.each(["qcow2", "raw"] as const)("lets nobody write to a %s image while it serves it", async (format) => {
    const image = await newImage(format);
    {
      await using server = await serve(image);
      expect(server.address.exportName).toBe("vda");
      await server.assertAlive(undefined);
      await expect(qemuIo(image.path, format, "write 0 64k")).rejects.toThrow(/"write" lock/);
      await open(image);
    }
    expect(await processes()).toBe("");
    await qemuIo(image.path, format, "write -P 0x22 0 64k");
  });

  it("refuses an image that is being written to, lacks the bitmap, or is not valid", async () => {
    const image = await newImage("qcow2");
    const writer = execa("qemu-nbd", ["-f", "qcow2", `--socket=${join(folder, "w.sock")}`, image.path], {
      reject: false,
    });
    await expect.poll(() => code(open(image))).toBe("E_IMAGE_IN_USE");
    expect(await code(serve(image))).toBe("E_IMAGE_IN_USE");
    writer.kill();
    await writer;
    const missing = serve(image, "nothing");
    await expect(missing).rejects.toThrow(/Bitmap 'nothing' is not found/);
    await writeFile(image.path, "no image");
    expect(await code(serve(image))).toBe("E_QEMU_TOOL");
    expect(await code(open(image))).toBe("E_QEMU_TOOL");
    expect(await processes()).toBe("");
  });

  it("notices that it was ended, and ends servers that a killed process left", async () => {
    const image = await newImage("raw");
    await using server = await serve(image);
    const left = execa("qemu-nbd", ["-r", "-f", "raw", `--socket=${join(folder, "l.sock")}`, image.path], {
      reject: false,
    });
    await endServersIn(`${folder}/elsewhere`);
    await expect.poll(async () => (await processes()).split("\n")).toHaveLength(2);
    await endServersIn(folder);
    expect((await left).isTerminated || (await left).exitCode === 0).toBe(true);
    expect(await processes()).toBe("");
    await expect(server.assertAlive(undefined)).rejects.toThrow();
  });
});

describeWith(["qemu-img", "qemu-io", "qemu-system-x86_64"], "an image with bitmaps for increments", () => {
  it("says which bitmaps can be used, and why others can't", async () => {
    const image = await newImage("qcow2");
    for (const name of ["good", "off", "both"]) await qemuImg("bitmap", "--add", image.path, name);
    await qemuImg("bitmap", "--disable", image.path, "off");
    const found = await open(image);
    expect(found.size).toBe(4 * MiB);
    expect(found.bitmapObstacle("good")).toBeUndefined();
    expect(found.bitmapObstacle("off")).toContain("switched off");
    expect(found.bitmapObstacle("none")).toContain("not in the image");
    const overlay: DiskFile = { path: join(folder, "top.qcow2"), kind: "file", format: "qcow2" };
    await qemuImg("create", "-q", "-f", "qcow2", "-b", image.path, "-F", "qcow2", overlay.path);
    await qemuImg("bitmap", "--add", overlay.path, "both");
    await qemuImg("bitmap", "--add", overlay.path, "own");
    const top = await open(overlay);
    expect(top.bitmapObstacle("own")).toBeUndefined();
    // QEMU's server would take the lower bitmap for the whole one.
    expect(top.bitmapObstacle("good")).toContain("not in the image");
    expect(top.bitmapObstacle("both")).toContain("backing chain");
  });

  it("is refused if it is encrypted", async () => {
    const path = join(folder, "secret.qcow2");
    const secret = ["--object", "secret,id=s,data=abc", "-o", "encrypt.format=aes,encrypt.key-secret=s"];
    await qemuImg("create", "-q", "-f", "qcow2", ...secret, path, "1M");
    expect(await code(open({ path, kind: "file", format: "qcow2" }))).toBe("E_DISK_UNFIT");
  });
});

describeWithLoop("a server on a block device", () => {
  it.each(["qcow2", "raw"] as const)("serves a %s image and lets nobody write to it", async (format) => {
    const file = join(folder, "device");
    await writeFile(file, "");
    await truncate(file, 16 * MiB);
    await using loop = await attachLoop(file);
    if (format === "qcow2") await createImage(loop.path, { size: 4 * MiB });
    await qemuIo(loop.path, format, "write -P 0x21 1M 64k");
    const image: DiskFile = { path: loop.path, kind: "block", format };
    await using server = await serve(image);
    await server.assertAlive(undefined);
    await expect(qemuIo(loop.path, format, "write 0 64k")).rejects.toThrow(/"write" lock/);
    expect((await open(image)).size).toBe(format === "raw" ? 16 * MiB : 4 * MiB);
  });
});
