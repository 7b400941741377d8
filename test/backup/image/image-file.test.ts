import { mkdir, readFile, stat } from "node:fs/promises";
import { execa } from "execa";
import { describe, expect, it, onTestFinished } from "vitest";
import { Appender, ImageFile } from "../../../src/backup/image/image-file.js";
import { Qcow2Writer } from "../../../src/backup/qcow2/writer.js";
import { skipUnable } from "../../support/tools.js";
import { fillCluster, KiB, MiB, scratch } from "./support.js";

describe("ImageFile", () => {
  it("makes files that the world can't read", async () => {
    const at = await scratch();
    await (await ImageFile.create(at("new"))).close();
    expect((await stat(at("new"))).mode & 0o007).toBe(0);
  });

  it("closes only after the transfers in progress have ended", async () => {
    const at = await scratch();
    const file = await ImageFile.create(at("new"));
    const ended: string[] = [];
    const content = fillCluster(0, 0, MiB);
    const writes = Array.from({ length: 8 }, async (_, i) => {
      await file.write(content, i * MiB);
      ended.push("write");
    });
    await file.close();
    ended.push("close");
    await Promise.all(writes);
    expect(ended).toEqual([...new Array<string>(8).fill("write"), "close"]);
    expect((await stat(at("new"))).size).toBe(8 * MiB);
  });

  it("may be closed twice", async () => {
    const at = await scratch();
    const file = await ImageFile.create(at("new"));
    await file.close();
    await file.close();
  });

  it("names the file that failed, with the system's error code", async () => {
    const at = await scratch();
    const file = await ImageFile.create(at("new"));
    await expect(file.write(Buffer.alloc(1), 2 ** 52)).rejects.toMatchObject({
      code: "EFBIG",
      message: expect.stringContaining(`byte ${2 ** 52} of ${at("new")}`) as string,
      details: { path: at("new") },
    });
    await file.close();
  });

  it("reads up to the end of the file, and returns how many bytes it read", async () => {
    const at = await scratch();
    const file = await ImageFile.create(at("new"));
    await file.write(fillCluster(0, 0, 100), 0);
    expect(await file.read(Buffer.alloc(64), 50)).toBe(50);
    expect(await file.read(Buffer.alloc(64), 100)).toBe(0);
    expect(await file.read(Buffer.alloc(0), 0)).toBe(0);
    await file.close();
  });
});

describe("Appender", () => {
  it("appends pieces of any length one after the other", async () => {
    const at = await scratch();
    const file = await ImageFile.create(at("new"));
    const out = new Appender(file, 1000);
    const pieces = [1, 0, 700_000, 500_000, 3 * MiB, 5].map((length, i) => fillCluster(0, i, length));
    for (const piece of pieces) await out.append(piece);
    await out.flush();
    await file.close();
    const expected = Buffer.concat([Buffer.alloc(1000), ...pieces]);
    expect(out.position).toBe(expected.length);
    expect(expected.equals(await readFile(at("new")))).toBe(true);
  });
});

/** A file system of a few pages. Only root can make one, and not everywhere. */
async function tinyFileSystem(folder: string, size: string): Promise<boolean> {
  await mkdir(folder);
  const mounted = await execa("mount", ["-t", "tmpfs", "-o", `size=${size}`, "tiny", folder], {
    reject: false,
  });
  if (mounted.exitCode === 0) onTestFinished(async () => void (await execa("umount", [folder])));
  return mounted.exitCode === 0;
}

describe("a full disk", () => {
  it("fails the write that no longer fits, with ENOSPC", async (context) => {
    const at = await scratch();
    if (!(await tinyFileSystem(at("tiny"), "256k")))
      skipUnable(context, "mount", "mounting is not allowed here");
    const geometry = { virtualSize: MiB, clusterSize: 64 * KiB };
    await using writer = await Qcow2Writer.create(at("tiny/disk"), { geometry });
    const write = (rank: number) =>
      writer.writeNow(writer.hostOffset(rank, rank), fillCluster(0, rank, 64 * KiB));
    write(0);
    expect(() => Array.from({ length: 16 }, (_, rank) => write(rank))).toThrow(
      expect.objectContaining({ code: "ENOSPC" }),
    );
  });

  it("fails to finish if the tables no longer fit, and leaves no image", async (context) => {
    const at = await scratch();
    if (!(await tinyFileSystem(at("tiny"), "256k")))
      skipUnable(context, "mount", "mounting is not allowed here");
    const geometry = { virtualSize: MiB, clusterSize: 64 * KiB };
    await using writer = await Qcow2Writer.create(at("tiny/disk"), { geometry });
    for (let rank = 0; rank < 3; rank += 1) {
      writer.writeNow(writer.hostOffset(rank, rank), fillCluster(0, rank, 64 * KiB));
    }
    writer.addRun({ kind: "data", cluster: 0, count: 3, hostOffset: 64 * KiB });
    await expect(writer.finish({ sync: true })).rejects.toMatchObject({ code: "ENOSPC" });
    expect((await readFile(at("tiny/disk"))).subarray(0, 64 * KiB).every((byte) => byte === 0)).toBe(true);
  });
});
