import { writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { DamageError } from "../../../src/backup/base/errors.js";
import { RawReader } from "../../../src/backup/image/raw-reader.js";
import { assertOfRawIncrements } from "./random-raw.js";
import { bytesOf, collect, expectedBytes, fillCluster, KiB, scratch, wishesOf } from "./support.js";

const GEOMETRY = { virtualSize: 4 * 64 * KiB, clusterSize: 64 * KiB };

describe("RawReader", () => {
  it("reports a disk without a map as one run of data", async () => {
    const at = await scratch();
    const content = fillCluster(0, 0, 3 * 64 * KiB + 100);
    await writeFile(at("disk.raw"), content);
    const geometry = { virtualSize: content.length, clusterSize: 64 * KiB };
    await using reader = await RawReader.open(at("disk.raw"), { geometry });
    expect(await collect(reader.runs())).toEqual([{ kind: "data", cluster: 0, count: 4, hostOffset: 0 }]);
    expect(content.equals(await bytesOf(reader, Buffer.alloc(0)))).toBe(true);
  });

  it("pads the last cluster with zeroes after the end of the disk", async () => {
    const at = await scratch();
    await writeFile(at("disk.raw"), fillCluster(0, 0, 64 * KiB));
    const geometry = { virtualSize: 100, clusterSize: 64 * KiB };
    await using reader = await RawReader.open(at("disk.raw"), { geometry });
    const target = Buffer.alloc(64 * KiB, 0xee);
    await reader.readHost(0, target);
    expect(target.subarray(0, 100).equals(fillCluster(0, 0, 100))).toBe(true);
    expect(target.subarray(100).every((byte) => byte === 0)).toBe(true);
  });

  it("reports no runs for an empty disk", async () => {
    const at = await scratch();
    await writeFile(at("disk.raw"), "");
    const geometry = { virtualSize: 0, clusterSize: 64 * KiB };
    await using reader = await RawReader.open(at("disk.raw"), { geometry });
    expect(await collect(reader.runs())).toEqual([]);
  });

  it("returns the runs of an increment as they were written", async () => {
    await assertOfRawIncrements(0, async ({ wishes, geometry, file, mapPath, isWhole }) => {
      await using reader = await RawReader.open(file, { geometry, mapPath });
      const expected = wishes.map((wish) => (wish === "unused" ? "zero" : wish));
      // The bits of the last cluster for bytes after the end of the disk are lost.
      if (isWhole) expect(await wishesOf(reader)).toEqual(expected);
      const below = fillCluster(9, 0, geometry.virtualSize);
      return expectedBytes(wishes, geometry, 0, below).equals(await bytesOf(reader, below));
    });
  });

  it("reads a map with any white space", async () => {
    const at = await scratch();
    await writeFile(at("disk.raw"), Buffer.alloc(GEOMETRY.virtualSize));
    const lines = [' {"type":0,"offset":0,"length":65536} ,', '{"offset":67584,"length":2048,"type":3}'];
    await writeFile(at("disk.map"), `\n[\r\n${lines.join("\n\n")}\n ]`);
    await using reader = await RawReader.open(at("disk.raw"), {
      geometry: GEOMETRY,
      mapPath: at("disk.map"),
    });
    expect(await collect(reader.runs())).toEqual([
      { kind: "data", cluster: 0, count: 1, hostOffset: 0 },
      { kind: "partial", cluster: 1, count: 1, hostOffset: 0, dataMask: 0, zeroMask: 2 },
    ]);
  });

  const line = (offset: number, length: number, type = 0): string => JSON.stringify({ offset, length, type });
  it.each([
    ["overlap", [line(0, 65_536), line(63 * KiB, 64 * KiB)], "can't be there"],
    ["are out of order", [line(65_536, 65_536), line(0, 2048)], "can't be there"],
    ["leave the disk", [line(3 * 65_536, 65_536 + 2048)], "can't be there"],
    ["begin inside a subcluster", [line(1024, 2048)], "can't be there"],
    ["end inside a subcluster", [line(0, 1024)], "can't be there"],
    ["are empty", [line(0, 0)], "line 2"],
    ["begin before the disk", [line(-2048, 4096)], "line 2"],
    ["are fractions", [line(0.5, 4096)], "line 2"],
    ["are too large for a number", ['{"offset":1e300,"length":1,"type":0}'], "line 2"],
    ["have an unknown type", [line(0, 2048), line(2048, 2048, 2)], "line 3"],
    ["are no extents", ["17"], "line 2"],
    ["are not JSON", ["{offset:0}"], "line 2"],
    ["never end", ["x".repeat(100_000)], "never ends"],
  ])("refuses a map whose extents %s", async (_title, extents, message) => {
    const at = await scratch();
    await writeFile(at("disk.raw"), Buffer.alloc(GEOMETRY.virtualSize));
    await writeFile(at("disk.map"), `[\n${extents.join(",\n")}\n]\n`);
    await using reader = await RawReader.open(at("disk.raw"), {
      geometry: GEOMETRY,
      mapPath: at("disk.map"),
    });
    const runs = collect(reader.runs());
    await expect(runs).rejects.toThrow(DamageError);
    await expect(runs).rejects.toThrow(message);
  });

  it.each([
    ["is empty", ""],
    ["was cut off", `[\n${line(0, 2048)},\n`],
    ["continues after its end", "[\n]\n[\n]\n"],
    ["has no beginning", `${line(0, 2048)}\n]\n`],
  ])("refuses a map that %s", async (_title, text) => {
    const at = await scratch();
    await writeFile(at("disk.raw"), Buffer.alloc(GEOMETRY.virtualSize));
    await writeFile(at("disk.map"), text);
    await using reader = await RawReader.open(at("disk.raw"), {
      geometry: GEOMETRY,
      mapPath: at("disk.map"),
    });
    await expect(collect(reader.runs())).rejects.toThrow(DamageError);
  });

  it("refuses a file that is shorter than its disk", async () => {
    const at = await scratch();
    await writeFile(at("disk.raw"), Buffer.alloc(GEOMETRY.virtualSize - 1));
    await expect(RawReader.open(at("disk.raw"), { geometry: GEOMETRY })).rejects.toThrow(DamageError);
  });

  it("notices a file that shrinks while it is open", async () => {
    const at = await scratch();
    await writeFile(at("disk.raw"), Buffer.alloc(GEOMETRY.virtualSize));
    await using reader = await RawReader.open(at("disk.raw"), { geometry: GEOMETRY });
    await writeFile(at("disk.raw"), Buffer.alloc(100));
    await expect(reader.readHost(0, Buffer.alloc(64 * KiB))).rejects.toMatchObject({
      code: "E_IMAGE_TRUNCATED",
    });
  });
});
