import { open, readFile, stat, writeFile } from "node:fs/promises";
import fc from "fast-check";
import { expect, it } from "vitest";
import { UsageError } from "../../../src/backup/base/errors.js";
import type { Geometry } from "../../../src/backup/image/image.js";
import { Qcow2Writer } from "../../../src/backup/qcow2/writer.js";
import { qemuImg } from "../../support/qemu-nbd.js";
import { describeWith } from "../../support/tools.js";
import {
  anyWish,
  assertSound,
  expectedBytes,
  fillCluster,
  finished,
  GiB,
  guestBytes,
  KiB,
  MiB,
  scratch,
  store,
  TiB,
  type Wish,
} from "../image/support.js";

const SMALL: Geometry = { virtualSize: 40 * 64 * KiB, clusterSize: 64 * KiB };

async function image(file: string, geometry: Geometry, wishes: readonly Wish[]): Promise<number> {
  const writer = await Qcow2Writer.create(file, { geometry });
  store(writer, wishes);
  return await finished(writer);
}

async function info(file: string): Promise<Record<string, unknown>> {
  return JSON.parse(await qemuImg("info", "--output=json", file)) as Record<string, unknown>;
}

describeWith(["qemu-img"], "Qcow2Writer", () => {
  it.each<[string, (cluster: number) => Wish]>([
    ["nothing", () => "clean"],
    ["data throughout", () => "data"],
    ["zeroes throughout", () => "zero"],
    ["every second cluster", (cluster) => (cluster % 2 === 0 ? "data" : "clean")],
    ["only slots that stay holes", () => "unused"],
    ["holes between data", (cluster) => (cluster % 3 === 0 ? "unused" : "data")],
    ["only the last cluster", (cluster) => (cluster === 39 ? "data" : "clean")],
  ])("writes %s as an image that qemu-img finds sound and reads back", async (_title, wished) => {
    const at = await scratch();
    const wishes = Array.from({ length: 40 }, (_, cluster) => wished(cluster));
    const stored = await image(at("disk.qcow2"), SMALL, wishes);
    await assertSound(at("disk.qcow2"));
    expect(stored).toBe(wishes.filter((w) => w === "data").length * 64 * KiB);
    const expected = expectedBytes(wishes, SMALL, 0, Buffer.alloc(0));
    expect(expected.equals(await guestBytes(at("disk.qcow2")))).toBe(true);
  });

  it("writes an empty disk", async () => {
    const at = await scratch();
    await image(at("disk.qcow2"), { virtualSize: 0, clusterSize: 64 * KiB }, []);
    await assertSound(at("disk.qcow2"));
    expect(await info(at("disk.qcow2"))).toMatchObject({ "virtual-size": 0 });
  });

  it.each([1, 511, 512, 65_535, 65_537, 3 * 64 * KiB + 700])(
    "rounds a disk of %i bytes up to whole sectors of zeroes",
    async (virtualSize) => {
      const at = await scratch();
      const geometry = { virtualSize, clusterSize: 64 * KiB };
      const wishes = new Array<Wish>(Math.ceil(virtualSize / geometry.clusterSize)).fill("data");
      await image(at("disk.qcow2"), geometry, wishes);
      await assertSound(at("disk.qcow2"));
      const bytes = await guestBytes(at("disk.qcow2"));
      expect(bytes.length).toBe(Math.ceil(virtualSize / 512) * 512);
      const expected = expectedBytes(wishes, geometry, 0, Buffer.alloc(0));
      expect(expected.equals(bytes.subarray(0, virtualSize))).toBe(true);
      expect(bytes.subarray(virtualSize).every((byte) => byte === 0)).toBe(true);
      expect((await stat(at("disk.qcow2"))).size % geometry.clusterSize).toBe(0);
    },
  );

  it("writes random mixes at every cluster size", async () => {
    const at = await scratch();
    let run = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 14, max: 17 }),
        fc.array(anyWish, { maxLength: 24 }),
        fc.integer({ min: 0, max: 5000 }),
        async (bits, wishes, missing) => {
          const file = at(`disk${run++}.qcow2`);
          const clusterSize = 2 ** bits;
          const virtualSize = Math.max(0, wishes.length * clusterSize - missing);
          await image(file, { virtualSize, clusterSize }, wishes);
          await assertSound(file);
          const expected = expectedBytes(wishes, { virtualSize, clusterSize }, 0, Buffer.alloc(0));
          return expected.equals((await guestBytes(file)).subarray(0, virtualSize));
        },
      ),
      { numRuns: 25 },
    );
  });

  it("lets the backing image show through clean clusters and clean parts of clusters", async () => {
    const at = await scratch();
    let run = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.array(anyWish, { minLength: 8, maxLength: 8 }),
        fc.constantFrom<"qcow2" | "raw">("qcow2", "raw"),
        async (wishes, format) => {
          const base = `base${run}.${format}`;
          const file = at(`overlay${run++}.qcow2`);
          const geometry = { virtualSize: 8 * 16 * KiB, clusterSize: 16 * KiB };
          const below = fillCluster(7, 0, geometry.virtualSize);
          await writeFile(at("below.raw"), below);
          await qemuImg("convert", "-f", "raw", "-O", format, at("below.raw"), at(base));
          const writer = await Qcow2Writer.create(file, { geometry, backing: { name: base, format } });
          store(writer, wishes, 1);
          await finished(writer);
          await assertSound(file);
          return expectedBytes(wishes, geometry, 1, below).equals(await guestBytes(file));
        },
      ),
      { numRuns: 20 },
    );
  });

  it("uses extended L2 entries only if a cluster is partly defined", async () => {
    const at = await scratch();
    await image(at("plain.qcow2"), SMALL, ["data", { dataMask: 0xffffffff, zeroMask: 0 }, "zero"]);
    await image(at("fine.qcow2"), SMALL, ["data", { dataMask: 1, zeroMask: 2 }, "zero"]);
    const specific = (extended: boolean) => ({ "format-specific": { data: { "extended-l2": extended } } });
    expect(await info(at("plain.qcow2"))).toMatchObject(specific(false));
    expect(await info(at("fine.qcow2"))).toMatchObject(specific(true));
  });

  it("names the backing file and its format in the header", async () => {
    const at = await scratch();
    const name = `../${"x".repeat(1000)}/ä.raw`;
    const backing = { name, format: "raw" } as const;
    const writer = await Qcow2Writer.create(at("disk.qcow2"), { geometry: SMALL, backing });
    await finished(writer);
    const told = JSON.parse(await qemuImg("info", "-U", "--output=json", at("disk.qcow2"))) as object;
    expect(told).toMatchObject({ "backing-filename": name, "backing-filename-format": "raw" });
  });

  it("stores a sparse disk of 2 TiB with a few tables", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 2 * TiB, clusterSize: 64 * KiB };
    const writer = await Qcow2Writer.create(at("disk.qcow2"), { geometry });
    const clusters = [0, 8191, 8192, 5_000_000, 33_554_431];
    for (const [rank, cluster] of clusters.entries()) {
      const hostOffset = writer.hostOffset(cluster, rank);
      writer.writeNow(hostOffset, fillCluster(0, cluster, 64 * KiB));
      writer.addRun({ kind: "data", cluster, count: 1, hostOffset });
    }
    await finished(writer);
    await assertSound(at("disk.qcow2"));
    expect((await stat(at("disk.qcow2"))).size).toBeLessThan(MiB);
    const map = JSON.parse(await qemuImg("map", "--output=json", at("disk.qcow2"))) as {
      start: number;
      data: boolean;
    }[];
    const starts = map.filter((extent) => extent.data).map((extent) => extent.start / geometry.clusterSize);
    expect(starts).toEqual([0, 8191, 5_000_000, 33_554_431]);
  });

  it("streams a run of zeroes that spans many tables", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 64 * GiB, clusterSize: 16 * KiB };
    const writer = await Qcow2Writer.create(at("disk.qcow2"), { geometry });
    writer.addRun({ kind: "zero", cluster: 100, count: 4_000_000 });
    writer.addRun({ kind: "partial", cluster: 4_000_100, count: 1, hostOffset: 0, dataMask: 0, zeroMask: 1 });
    await finished(writer);
    await assertSound(at("disk.qcow2"));
    const map = await qemuImg("map", "--output=json", at("disk.qcow2"));
    expect(JSON.parse(map)).toMatchObject([
      { start: 0, present: false },
      { start: 100 * 16 * KiB, length: 4_000_000 * 16 * KiB + 512, zero: true, present: true },
      { present: false },
    ]);
  });

  it("counts references in as many refcount blocks as a large file needs", async () => {
    const at = await scratch();
    const geometry = { virtualSize: GiB, clusterSize: 16 * KiB };
    const writer = await Qcow2Writer.create(at("disk.qcow2"), { geometry });
    const count = GiB / geometry.clusterSize;
    writer.addRun({ kind: "data", cluster: 0, count, hostOffset: writer.hostOffset(0, 0) });
    await finished(writer);
    await assertSound(at("disk.qcow2"));
  });

  it("truncates slots after the last one in use, whatever was written there", async () => {
    const at = await scratch();
    const writer = await Qcow2Writer.create(at("disk.qcow2"), { geometry: SMALL });
    for (let rank = 0; rank < 20; rank += 1) {
      writer.writeNow(writer.hostOffset(rank, rank), fillCluster(0, rank, 64 * KiB));
    }
    writer.addRun({ kind: "data", cluster: 0, count: 1, hostOffset: writer.hostOffset(0, 0) });
    await finished(writer);
    await assertSound(at("disk.qcow2"));
    expect((await stat(at("disk.qcow2"))).size).toBe((2 + 1 + 1 + 1 + 1) * 64 * KiB);
  });

  it("leaves no valid image before it is finished", async () => {
    const at = await scratch();
    const writer = await Qcow2Writer.create(at("disk.qcow2"), { geometry: SMALL });
    store(writer, ["data", "data"]);
    await writer.close();
    expect((await readFile(at("disk.qcow2"))).subarray(0, 64 * KiB).every((byte) => byte === 0)).toBe(true);
    await expect(qemuImg("info", "-f", "qcow2", at("disk.qcow2"))).rejects.toThrow("not in qcow2 format");
  });

  it("finishes with sync", async () => {
    const at = await scratch();
    await using writer = await Qcow2Writer.create(at("disk.qcow2"), { geometry: SMALL });
    store(writer, ["data"]);
    expect(await writer.finish({ sync: true })).toEqual({ storedBytes: 64 * KiB });
    await assertSound(at("disk.qcow2"));
  });

  it("never overwrites a file", async () => {
    const at = await scratch();
    await (await open(at("disk.qcow2"), "w")).close();
    await expect(Qcow2Writer.create(at("disk.qcow2"), { geometry: SMALL })).rejects.toMatchObject({
      code: "EEXIST",
    });
  });

  it.each([
    ["clusters below 16 KiB", { virtualSize: GiB, clusterSize: 8 * KiB }],
    ["clusters above 2 MiB", { virtualSize: GiB, clusterSize: 4 * MiB }],
    ["clusters that are no power of two", { virtualSize: GiB, clusterSize: 48 * KiB }],
    ["a disk beyond the L1 table's limit", { virtualSize: 129 * TiB, clusterSize: 16 * KiB }],
  ])("refuses %s before it makes a file", async (_title, geometry) => {
    const at = await scratch();
    await expect(Qcow2Writer.create(at("disk.qcow2"), { geometry })).rejects.toThrow(UsageError);
    await expect(stat(at("disk.qcow2"))).rejects.toMatchObject({ code: "ENOENT" });
  });

  it("refuses a backing file name that the header can't hold", async () => {
    const at = await scratch();
    for (const name of ["", "n".repeat(1024)]) {
      const backing = { name, format: "qcow2" } as const;
      await expect(Qcow2Writer.create(at("d"), { geometry: SMALL, backing })).rejects.toThrow(UsageError);
    }
  });

  it("refuses a partly defined cluster on a disk too large for subclusters", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 100 * TiB, clusterSize: 16 * KiB };
    await using writer = await Qcow2Writer.create(at("disk.qcow2"), { geometry });
    const run = { kind: "partial", cluster: 5, count: 1, hostOffset: 0, dataMask: 0, zeroMask: 1 } as const;
    expect(() => writer.addRun(run)).toThrow(UsageError);
  });

  it("refuses runs that are out of order, off the disk or overlapping in the file", async () => {
    const at = await scratch();
    await using writer = await Qcow2Writer.create(at("disk.qcow2"), { geometry: SMALL });
    const data = (cluster: number, hostCluster: number) =>
      ({ kind: "data", cluster, count: 2, hostOffset: hostCluster * 64 * KiB }) as const;
    writer.addRun(data(10, 5));
    expect(() => writer.addRun(data(11, 7))).toThrow("out of order");
    expect(() => writer.addRun(data(12, 6))).toThrow("misplaced");
    expect(() => writer.addRun(data(39, 20))).toThrow("behind the end");
    expect(() => writer.writeNow(0, Buffer.alloc(1))).toThrow("header");
  });
});
