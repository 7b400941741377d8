import { readFile, stat, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import type { Geometry } from "../../../src/backup/image/image.js";
import { RawWriter } from "../../../src/backup/image/raw-writer.js";
import { assertOfRawIncrements } from "./random-raw.js";
import { expectedBytes, fillCluster, finished, KiB, scratch, store, TiB, type Wish } from "./support.js";

const SMALL: Geometry = { virtualSize: 10 * 64 * KiB, clusterSize: 64 * KiB };

interface MapExtent {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
  readonly description: string;
}

async function mapOf(path: string): Promise<MapExtent[]> {
  return JSON.parse(await readFile(path, "utf8")) as MapExtent[];
}

describe("RawWriter", () => {
  it.each([0, 1, 700, 10 * 64 * KiB, 9 * 64 * KiB + 700])(
    "makes a file of exactly the %i bytes of the disk",
    async (virtualSize) => {
      const at = await scratch();
      const geometry = { virtualSize, clusterSize: 64 * KiB };
      const wishes = new Array<Wish>(Math.ceil(virtualSize / geometry.clusterSize)).fill("data");
      const writer = await RawWriter.create(at("disk.raw"), { geometry });
      store(writer, wishes);
      expect(await finished(writer)).toBe(virtualSize);
      const expected = expectedBytes(wishes, geometry, 0, Buffer.alloc(0));
      expect(expected.equals(await readFile(at("disk.raw")))).toBe(true);
    },
  );

  it("refuses data past the end of the disk", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 64 * KiB + 100, clusterSize: 64 * KiB };
    await using writer = await RawWriter.create(at("disk.raw"), { geometry });
    const padded = fillCluster(0, 1, 64 * KiB);
    expect(() => writer.writeNow(writer.hostOffset(1, 0), padded)).toThrow("past the end");
    writer.writeNow(writer.hostOffset(1, 0), padded.subarray(0, 100));
    writer.addRun({ kind: "data", cluster: 1, count: 1, hostOffset: 64 * KiB });
    await finished(writer);
    expect((await stat(at("disk.raw"))).size).toBe(geometry.virtualSize);
  });

  it("leaves a hole where there is no data", async () => {
    const at = await scratch();
    const writer = await RawWriter.create(at("disk.raw"), {
      geometry: { virtualSize: TiB, clusterSize: 64 * KiB },
    });
    writer.writeNow(TiB - 64 * KiB, fillCluster(0, 0, 64 * KiB));
    writer.addRun({ kind: "zero", cluster: 0, count: 1000 });
    writer.addRun({ kind: "data", cluster: TiB / (64 * KiB) - 1, count: 1, hostOffset: TiB - 64 * KiB });
    expect(await finished(writer)).toBe(64 * KiB);
    const { size, blocks } = await stat(at("disk.raw"));
    expect(size).toBe(TiB);
    expect(blocks * 512).toBeLessThan(256 * KiB);
  });

  it("maps an increment's extents in subclusters, one per line", async () => {
    const at = await scratch();
    const mapPath = at("disk.map");
    const writer = await RawWriter.create(at("disk.raw"), { geometry: SMALL, mapPath });
    store(writer, ["clean", "data", "data", { dataMask: 0b0110, zeroMask: 0b1001 }, "zero", "unused"]);
    expect(await finished(writer)).toBe(2 * 64 * KiB + 2 * 2 * KiB);
    const sub = 2 * KiB;
    const start = 3 * 64 * KiB;
    expect(await mapOf(mapPath)).toEqual([
      { offset: 64 * KiB, length: 128 * KiB, type: 0, description: "data" },
      { offset: start, length: sub, type: 3, description: "hole,zero" },
      { offset: start + sub, length: 2 * sub, type: 0, description: "data" },
      { offset: start + 3 * sub, length: sub, type: 3, description: "hole,zero" },
      { offset: 4 * 64 * KiB, length: 128 * KiB, type: 3, description: "hole,zero" },
    ]);
    expect((await readFile(mapPath, "utf8")).split("\n")[1]).toBe(
      '{ "offset": 65536, "length": 131072, "type": 0, "description": "data"},',
    );
  });

  it("writes a map without extents for an increment without changes", async () => {
    const at = await scratch();
    const writer = await RawWriter.create(at("disk.raw"), { geometry: SMALL, mapPath: at("disk.map") });
    await finished(writer);
    expect(await readFile(at("disk.map"), "utf8")).toBe("[\n]\n");
  });

  it("maps random mixes so that the extents laid over the base give the disk", async () => {
    await assertOfRawIncrements(1, async ({ wishes, geometry, file, mapPath }) => {
      const disk = fillCluster(7, 0, geometry.virtualSize);
      const expected = expectedBytes(wishes, geometry, 1, disk);
      const content = await readFile(file);
      let end = 0;
      for (const { offset, length, type } of await mapOf(mapPath)) {
        expect(offset).toBeGreaterThanOrEqual(end);
        end = offset + length;
        if (type === 0) content.copy(disk, offset, offset, end);
        else disk.fill(0, offset, end);
      }
      return content.length === geometry.virtualSize && end <= geometry.virtualSize && disk.equals(expected);
    });
  });

  it("finishes file and map with sync", async () => {
    const at = await scratch();
    await using writer = await RawWriter.create(at("disk.raw"), { geometry: SMALL, mapPath: at("disk.map") });
    store(writer, ["data"]);
    expect(await writer.finish({ sync: true })).toEqual({ storedBytes: 64 * KiB });
    expect(await mapOf(at("disk.map"))).toHaveLength(1);
  });

  it("never overwrites a file or a map", async () => {
    const at = await scratch();
    await writeFile(at("taken"), "");
    const exists = { code: "EEXIST" };
    await expect(RawWriter.create(at("taken"), { geometry: SMALL })).rejects.toMatchObject(exists);
    const taken = RawWriter.create(at("disk.raw"), { geometry: SMALL, mapPath: at("taken") });
    await expect(taken).rejects.toMatchObject(exists);
  });

  it("refuses runs past the end of the disk", async () => {
    const at = await scratch();
    await using writer = await RawWriter.create(at("disk.raw"), { geometry: SMALL });
    expect(() => writer.addRun({ kind: "zero", cluster: 9, count: 2 })).toThrow("behind the end");
  });
});
