import { readFile, stat, writeFile } from "node:fs/promises";
import * as zlib from "node:zlib";
import { execa } from "execa";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { UsageError } from "../../../src/backup/base/errors.js";
import { type Geometry, maskStretches } from "../../../src/backup/image/image.js";
import type { CompressionMethod } from "../../../src/backup/qcow2/can-compress.js";
import { checkQcow2 } from "../../../src/backup/qcow2/check.js";
import { ClusterCompressor, DEFAULT_LEVEL } from "../../../src/backup/qcow2/compress-cluster.js";
import { Qcow2CompressedWriter } from "../../../src/backup/qcow2/compressed-writer.js";
import { Qcow2Reader } from "../../../src/backup/qcow2/reader.js";
import { describeWithNewerSuite, newer } from "../../support/newer-suite.js";
import { noise } from "../../support/noise.js";
import { qemuImg } from "../../support/qemu-nbd.js";
import { describeWith } from "../../support/tools.js";
import {
  assertSound,
  bytesOf,
  fillCluster,
  finished,
  guestBytes,
  KiB,
  MiB,
  scratch,
  TiB,
} from "../image/support.js";

/** A number is the incompressible share of a cluster's bytes, in percent. */
type Wish = number | "clean" | "zero" | { readonly dataMask: number; readonly zeroMask: number };

const anyMask = fc.integer({ min: 0, max: 0xffffffff });
const anyWish = fc.oneof(
  { weight: 4, arbitrary: fc.constantFrom<Wish>(0, 1, 20, 50, 90, 100, "clean", "zero") },
  {
    weight: 1,
    arbitrary: fc
      .tuple(anyMask, anyMask)
      .map(([a, b]) => ({ dataMask: a, zeroMask: (b & ~a) >>> 0 }))
      .filter(({ dataMask, zeroMask }) => dataMask !== 0 || zeroMask !== 0),
  },
);

function contentOf(wish: Wish, cluster: number, { clusterSize, virtualSize }: Geometry): Buffer {
  const bytes = Buffer.alloc(clusterSize);
  if (typeof wish === "number") {
    const random = Math.floor((clusterSize * wish) / 100);
    bytes.fill(1 + (cluster % 255));
    noise(random, cluster).copy(bytes);
  } else if (typeof wish === "object") {
    for (const { offset, length } of maskStretches(wish.dataMask, clusterSize)) {
      noise(length, cluster).copy(bytes, offset);
    }
  }
  return bytes.fill(0, Math.max(0, Math.min(clusterSize, virtualSize - cluster * clusterSize)));
}

async function add(
  writer: Qcow2CompressedWriter,
  cluster: number,
  wish: Wish,
  method: CompressionMethod = "deflate",
): Promise<void> {
  if (wish === "clean") return;
  const content = contentOf(wish, cluster, writer.geometry);
  if (wish === "zero") writer.addZeroes(cluster, 1);
  else if (typeof wish === "object") writer.addPartial({ cluster, ...wish }, content);
  else {
    const length = await compressed(content, method);
    if (length < content.length) writer.addStream(cluster, content.subarray(0, length));
    else writer.addCluster(cluster, content);
  }
}

/** Compresses a cluster in place, and returns the compressed length. */
async function compressed(cluster: Buffer, method: CompressionMethod): Promise<number> {
  const key = `${method} ${cluster.length}`;
  let compressor = compressors.get(key);
  if (compressor === undefined) {
    compressor = new ClusterCompressor({ method, level: DEFAULT_LEVEL }, cluster.length);
    compressors.set(key, compressor);
  }
  return await compressor.compress(cluster);
}

const compressors = new Map<string, ClusterCompressor>();

interface Made {
  readonly geometry: Geometry;
  readonly wishes: readonly Wish[];
  readonly method?: CompressionMethod;
  readonly backing?: { readonly name: string; readonly format: "raw" };
}

async function image(file: string, { geometry, wishes, method = "deflate", backing }: Made): Promise<number> {
  const writer = await Qcow2CompressedWriter.create(file, { geometry, compression: method, backing });
  for (const [cluster, wish] of wishes.entries()) await add(writer, cluster, wish, method);
  return await finished(writer);
}

function expected({ geometry, wishes }: Made, below: Buffer): Buffer {
  const { clusterSize, virtualSize } = geometry;
  const disk = Buffer.alloc(wishes.length * clusterSize);
  below.copy(disk);
  for (const [cluster, wish] of wishes.entries()) {
    if (wish === "clean") continue;
    const content = contentOf(wish, cluster, geometry);
    const mask = typeof wish === "object" ? (wish.dataMask | wish.zeroMask) >>> 0 : 0xffffffff;
    for (const { offset, length } of maskStretches(mask, clusterSize)) {
      content.copy(disk, cluster * clusterSize + offset, offset, offset + length);
    }
  }
  return disk.subarray(0, virtualSize);
}

/** Compares an image with its source by QEMU's check and reader, and by ours. */
async function judge(file: string, made: Made, below: Buffer = Buffer.alloc(0)): Promise<void> {
  await assertSound(file);
  expect(await checkQcow2(file)).toEqual([]);
  const disk = expected(made, below);
  const { virtualSize } = made.geometry;
  expect(disk.equals((await guestBytes(file)).subarray(0, virtualSize))).toBe(true);
  await using reader = await Qcow2Reader.open(file);
  const ours = await bytesOf(reader, below);
  expect(disk.equals(ours.subarray(0, virtualSize))).toBe(true);
}

/** Writes and judges random images with clusters of 16 to 128 KiB, using one method. */
async function tellStories(method: CompressionMethod): Promise<void> {
  const at = await scratch();
  let run = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 14, max: 17 }),
      fc.array(anyWish, { minLength: 1, maxLength: 30 }),
      fc.integer({ min: 0, max: 30 }),
      async (bits, wishes, missing) => {
        const file = at(`disk${run++}.qcow2`);
        const clusterSize = 2 ** bits;
        const geometry = { virtualSize: wishes.length * clusterSize - missing * 512, clusterSize };
        const below = fillCluster(9, 1, geometry.virtualSize);
        await writeFile(at("below.raw"), below);
        const made = { geometry, wishes, method, backing: { name: "below.raw", format: "raw" } } as const;
        await image(file, made);
        await judge(file, made, below);
      },
    ),
    { numRuns: 30 },
  );
}

describeWith(["qemu-img"], "Qcow2CompressedWriter", () => {
  it.each([16, 32, 64, 128, 256, 512, 1024, 2048])("writes every kind of cluster of %i KiB", async (kib) => {
    const at = await scratch();
    const clusterSize = kib * KiB;
    const wishes: Wish[] = [0, 100, 50, 30, 100, 100, 50, "zero", 60, "clean", 100, 0, 0, 50];
    const made = { geometry: { virtualSize: 14 * clusterSize - 512, clusterSize }, wishes };
    await image(at("disk.qcow2"), made);
    await judge(at("disk.qcow2"), made);
  });

  it("writes random mixes over a backing image, which shows through clean clusters", async () => {
    await tellStories("deflate");
  });

  it("writes thousands of streams that cross host cluster boundaries", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 5000 * 16 * KiB, clusterSize: 16 * KiB };
    const wishes = Array.from({ length: 5000 }, (_, i): Wish => (i % 97 === 0 ? 100 : (i * 7) % 80));
    const made = { geometry, wishes };
    const stored = await image(at("disk.qcow2"), made);
    await judge(at("disk.qcow2"), made);
    const { size } = await stat(at("disk.qcow2"));
    expect(stored).toBeLessThan(geometry.virtualSize / 2);
    expect(size - stored).toBeLessThan(2 * MiB);
  });

  it("wastes little space when streams and incompressible clusters alternate", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 200 * 64 * KiB, clusterSize: 64 * KiB };
    const made = { geometry, wishes: Array.from({ length: 200 }, (_, i) => (i % 2 === 0 ? 100 : 25)) };
    const stored = await image(at("disk.qcow2"), made);
    await judge(at("disk.qcow2"), made);
    expect((await stat(at("disk.qcow2"))).size - stored).toBeLessThan(0.1 * geometry.virtualSize);
  });

  it("counts more than a hundred references to one cluster", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 700 * 64 * KiB, clusterSize: 64 * KiB };
    const made = { geometry, wishes: new Array<Wish>(700).fill(0) };
    await image(at("disk.qcow2"), made);
    await judge(at("disk.qcow2"), made);
    expect((await stat(at("disk.qcow2"))).size).toBeLessThan(MiB);
  });

  it("pads very short streams, so that no refcount can overflow", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 100 * TiB, clusterSize: 2 * MiB };
    const writer = await Qcow2CompressedWriter.create(at("disk.qcow2"), { geometry, compression: "deflate" });
    const stream = Buffer.alloc(1);
    for (let cluster = 0; cluster < 40_000; cluster += 1) writer.addStream(cluster, stream);
    expect(await finished(writer)).toBe(40_000 * 128);
    await assertSound(at("disk.qcow2"));
    expect(await checkQcow2(at("disk.qcow2"))).toEqual([]);
  });

  it("stores a few clusters of a disk of 16 TiB in a small file", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 16 * TiB, clusterSize: 64 * KiB };
    const writer = await Qcow2CompressedWriter.create(at("disk.qcow2"), { geometry, compression: "deflate" });
    const clusters = [0, 8191, 8192, 5_000_000, 200_000_000, 268_435_455];
    for (const cluster of clusters) await add(writer, cluster, cluster % 2 === 0 ? 30 : 100);
    await finished(writer);
    await assertSound(at("disk.qcow2"));
    expect((await stat(at("disk.qcow2"))).size).toBeLessThan(2 * MiB);
    const map = JSON.parse(await qemuImg("map", "--output=json", at("disk.qcow2"))) as {
      start: number;
      length: number;
      data: boolean;
    }[];
    const found = map
      .filter((extent) => extent.data)
      .flatMap(({ start, length }) =>
        Array.from({ length: length / geometry.clusterSize }, (_, i) => start / geometry.clusterSize + i),
      );
    expect(found).toEqual(clusters);
    await using reader = await Qcow2Reader.open(at("disk.qcow2"));
    for await (const run of reader.runs()) {
      if (run.kind !== "data") throw new Error(`a ${run.kind} run`);
      for (let i = 0; i < run.count; i += 1) {
        const bytes = Buffer.alloc(geometry.clusterSize);
        await reader.readHost(run.hostOffset + i * geometry.clusterSize, bytes);
        const cluster = run.cluster + i;
        expect(bytes.equals(contentOf(cluster % 2 === 0 ? 30 : 100, cluster, geometry))).toBe(true);
      }
    }
  });

  it("writes an empty disk, and a disk without data", async () => {
    const at = await scratch();
    for (const virtualSize of [0, 512, 10 * MiB]) {
      const made = { geometry: { virtualSize, clusterSize: 64 * KiB }, wishes: [] };
      await image(at(`${virtualSize}.qcow2`), made);
      await assertSound(at(`${virtualSize}.qcow2`));
      expect((await guestBytes(at(`${virtualSize}.qcow2`))).every((byte) => byte === 0)).toBe(true);
    }
  });

  it("leaves no valid image before it is finished", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 100 * 64 * KiB, clusterSize: 64 * KiB };
    const writer = await Qcow2CompressedWriter.create(at("disk.qcow2"), { geometry, compression: "deflate" });
    for (let cluster = 0; cluster < 100; cluster += 1) await add(writer, cluster, 100);
    await writer.close();
    const { length } = await readFile(at("disk.qcow2"));
    expect(length).toBeGreaterThan(64 * KiB);
    expect((await readFile(at("disk.qcow2"))).subarray(0, 64 * KiB).every((byte) => byte === 0)).toBe(true);
  });

  it("finishes with sync", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 64 * KiB, clusterSize: 64 * KiB };
    await using writer = await Qcow2CompressedWriter.create(at("disk.qcow2"), {
      geometry,
      compression: "deflate",
    });
    await add(writer, 0, 100);
    expect(await writer.finish({ sync: true })).toEqual({ storedBytes: 64 * KiB });
    await assertSound(at("disk.qcow2"));
  });

  it("refuses runs that are out of order, off the disk or no gain", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 10 * 64 * KiB, clusterSize: 64 * KiB };
    await using writer = await Qcow2CompressedWriter.create(at("disk.qcow2"), {
      geometry,
      compression: "deflate",
    });
    writer.addStream(5, Buffer.alloc(100));
    expect(() => writer.addStream(5, Buffer.alloc(100))).toThrow("out of order");
    expect(() => writer.addZeroes(9, 2)).toThrow("behind the end");
    expect(() => writer.addStream(6, Buffer.alloc(64 * KiB))).toThrow("no gain");
    expect(() => writer.addStream(6, Buffer.alloc(0))).toThrow("no gain");
    expect(() => writer.addCluster(6, Buffer.alloc(64 * KiB + 1))).toThrow("more bytes");
  });

  it("refuses a disk with clusters out of reach of compressed entries", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 512 * TiB, clusterSize: 2 * MiB };
    const options = { geometry, compression: "deflate" } as const;
    await expect(Qcow2CompressedWriter.create(at("disk.qcow2"), options)).rejects.toThrow(UsageError);
    await expect(stat(at("disk.qcow2"))).rejects.toMatchObject({ code: "ENOENT" });
  });
});

const hasZstd = "zstdCompress" in zlib;
describe.skipIf(!hasZstd)("Qcow2CompressedWriter with zstd (Node 22.15 or newer)", () => {
  it("writes random mixes over a backing image", async () => {
    await tellStories("zstd");
  });

  it("names the method in the header", async () => {
    const at = await scratch();
    await image(at("disk.qcow2"), {
      geometry: { virtualSize: MiB, clusterSize: 64 * KiB },
      wishes: [{ dataMask: 1, zeroMask: 2 }, 0],
      method: "zstd",
    });
    const info = JSON.parse(await qemuImg("info", "--output=json", at("disk.qcow2"))) as object;
    expect(info).toMatchObject({
      "format-specific": { data: { "compression-type": "zstd", "extended-l2": true } },
    });
  });

  it("puts thousands of streams of constant bytes into one cluster of 2 MiB", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 30_000 * 2 * MiB, clusterSize: 2 * MiB };
    const writer = await Qcow2CompressedWriter.create(at("disk.qcow2"), { geometry, compression: "zstd" });
    const bytes = Buffer.alloc(2 * MiB, 7);
    const stream = bytes.subarray(0, await compressed(bytes, "zstd"));
    for (let cluster = 0; cluster < 30_000; cluster += 1) writer.addStream(cluster, stream);
    await finished(writer);
    await assertSound(at("disk.qcow2"));
    expect(await checkQcow2(at("disk.qcow2"))).toEqual([]);
  });
});

describe.skipIf(hasZstd)("compressing with zstd if Node lacks it", () => {
  it("says which Node version is needed", () => {
    expect(() => new ClusterCompressor({ method: "zstd", level: 1 }, 64 * KiB)).toThrow(
      expect.objectContaining({ code: "E_NO_ZSTD" }),
    );
  });
});

describeWithNewerSuite("Qcow2CompressedWriter and QEMU 10", () => {
  it("agree on every kind of cluster", async () => {
    const at = await scratch();
    const geometry = { virtualSize: 12 * 64 * KiB - 512, clusterSize: 64 * KiB };
    const partial = { dataMask: 0xf0f0, zeroMask: 0x0f0f };
    const made = { geometry, wishes: [0, 50, 100, partial, 30, "zero", 70, 100, 100, 10, 20, 90] as Wish[] };
    await image(at("disk.qcow2"), made);
    await execa(newer("qemu-img"), ["check", "-f", "qcow2", at("disk.qcow2")]);
    await execa(newer("qemu-img"), ["convert", "-O", "raw", at("disk.qcow2"), at("disk.raw")]);
    expect(expected(made, Buffer.alloc(0)).equals(await readFile(at("disk.raw")))).toBe(true);
  });
});
