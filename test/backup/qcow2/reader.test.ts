import { readFile, writeFile } from "node:fs/promises";
import * as zlib from "node:zlib";
import { execa } from "execa";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Damage } from "../../../src/backup/base/damage.js";
import { DamageError } from "../../../src/backup/base/errors.js";
import type { ClusterRun, Geometry } from "../../../src/backup/image/image.js";
import { Qcow2Reader } from "../../../src/backup/qcow2/reader.js";
import { Qcow2Writer } from "../../../src/backup/qcow2/writer.js";
import { processorMs } from "../../support/processor-time.js";
import { qemuImg, qemuIo } from "../../support/qemu-nbd.js";
import { describeWith } from "../../support/tools.js";
import {
  anyWish,
  bytesOf,
  collect,
  expectedBytes,
  fillCluster,
  finished,
  guestBytes,
  KiB,
  MiB,
  scratch,
  store,
  TiB,
  type Wish,
  wishesOf,
} from "../image/support.js";

async function runsOf(path: string): Promise<ClusterRun[]> {
  await using reader = await Qcow2Reader.open(path);
  return await collect(reader.runs());
}

/** Reads a stranger's image: the outcome is its bytes or a typed error. */
async function readAll(path: string): Promise<Buffer> {
  await using reader = await Qcow2Reader.open(path);
  return await bytesOf(reader, Buffer.alloc(0));
}

/** An image of 4 MiB made by QEMU and changed by the qemu-io `commands`. */
async function qemuImage(path: string, options: string, ...commands: string[]): Promise<void> {
  await qemuImg("create", "-q", "-f", "qcow2", ...(options === "" ? [] : ["-o", options]), path, "4M");
  if (commands.length > 0) await qemuIo(path, "qcow2", ...commands);
}

const MIX = [
  "write -P 1 0 200k",
  "write -P 2 1M 64k",
  "write -z 2M 256k",
  "write -P 3 3900k 196k",
  "discard 64k 64k",
];

describeWith(["qemu-img", "qemu-io"], "Qcow2Reader on images made by QEMU", () => {
  it.each([
    ["version 3", ""],
    ["version 2", "compat=0.10"],
    ["small clusters", "cluster_size=512"],
    ["large clusters", "cluster_size=2M"],
    ["extended L2 entries", "extended_l2=on,cluster_size=64k"],
    ["preallocated tables", "preallocation=metadata"],
    ["preallocated clusters", "preallocation=falloc"],
    ["refcounts of one bit", "refcount_bits=1"],
    ["refcounts of 64 bits", "refcount_bits=64"],
    ["lazy refcounts", "lazy_refcounts=on"],
  ])("reads %s as the guest sees them", async (_title, options) => {
    const at = await scratch();
    await qemuImage(at("disk.qcow2"), options, ...MIX);
    expect((await guestBytes(at("disk.qcow2"))).equals(await readAll(at("disk.qcow2")))).toBe(true);
  });

  it.each([
    ["standard", "cluster_size=64k"],
    ["small", "cluster_size=4k"],
    ["extended", "cluster_size=64k,extended_l2=on"],
  ])("decompresses clusters of an image with %s entries", async (_title, options) => {
    const at = await scratch();
    const program = await readFile(process.execPath).then((bytes) => bytes.subarray(0, 2 * MiB));
    await writeFile(at("plain.raw"), program);
    await qemuImg("convert", "-c", "-O", "qcow2", "-o", options, at("plain.raw"), at("disk.qcow2"));
    expect(program.equals(await readAll(at("disk.qcow2")))).toBe(true);
  });

  it("reads any part of a compressed cluster", async () => {
    const at = await scratch();
    const content = Buffer.from(Array.from({ length: 256 * KiB }, (_, i) => (i * i) >>> 5));
    await writeFile(at("plain.raw"), content);
    await qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", at("plain.raw"), at("disk.qcow2"));
    await using reader = await Qcow2Reader.open(at("disk.qcow2"));
    const [run, ...others] = await collect(reader.runs());
    expect([run, others]).toMatchObject([{ kind: "data", cluster: 0, count: 4 }, []]);
    const target = Buffer.alloc(100_000);
    await reader.readHost((run as { hostOffset: number }).hostOffset + 50_001, target);
    expect(target.equals(content.subarray(50_001, 150_001))).toBe(true);
  });

  it("decompresses zstd if Node can, and reports it if not", async () => {
    const at = await scratch();
    const content = Buffer.from(Array.from({ length: 256 * KiB }, (_, i) => (i * i) >>> 5));
    await writeFile(at("plain.raw"), content);
    const options = ["-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"];
    await qemuImg("convert", ...options, at("plain.raw"), at("disk.qcow2"));
    if ("zstdDecompress" in zlib) expect(content.equals(await readAll(at("disk.qcow2")))).toBe(true);
    else await expect(readAll(at("disk.qcow2"))).rejects.toThrow("Node 22.15");
  });

  it("tells clean, zero and data apart, and joins neighbours", async () => {
    const at = await scratch();
    await qemuImage(at("disk.qcow2"), "", "write -P 1 64k 128k", "write -z 192k 64k", "write -P 2 1M 64k");
    expect(await runsOf(at("disk.qcow2"))).toMatchObject([
      { kind: "data", cluster: 1, count: 2 },
      { kind: "zero", cluster: 3, count: 1 },
      { kind: "data", cluster: 16, count: 1 },
    ]);
  });

  it("reads subclusters from extended L2 entries", async () => {
    const at = await scratch();
    const commands = ["write -P 1 4k 4k", "write -z 10k 2k", "write -P 2 64k 64k", "write -z 128k 64k"];
    await qemuImage(at("disk.qcow2"), "extended_l2=on", ...commands);
    expect(await runsOf(at("disk.qcow2"))).toMatchObject([
      { kind: "partial", cluster: 0, dataMask: 0b1100, zeroMask: 0b100000 },
      { kind: "data", cluster: 1, count: 1 },
      { kind: "zero", cluster: 2, count: 1 },
    ]);
  });

  it("treats zero clusters with a host offset as zeroes", async () => {
    const at = await scratch();
    await qemuImage(at("disk.qcow2"), "", "write -P 1 0 128k", "write -z 0 64k");
    expect(await runsOf(at("disk.qcow2"))).toMatchObject([
      { kind: "zero", cluster: 0, count: 1 },
      { kind: "data", cluster: 1, count: 1 },
    ]);
  });

  it("reads the active state of an image with internal snapshots and bitmaps", async () => {
    const at = await scratch();
    await qemuImage(at("disk.qcow2"), "", "write -P 1 0 1M");
    await qemuImg("snapshot", "-c", "then", at("disk.qcow2"));
    await qemuImg("bitmap", "--add", at("disk.qcow2"), "changes");
    await qemuIo(at("disk.qcow2"), "qcow2", "write -P 2 0 64k");
    await using reader = await Qcow2Reader.open(at("disk.qcow2"));
    expect(reader.header).toMatchObject({ snapshots: 1, hasBitmaps: true });
    const bytes = await bytesOf(reader, Buffer.alloc(0));
    expect((await guestBytes(at("disk.qcow2"))).equals(bytes)).toBe(true);
  });

  it("reports the backing file and its format, if there is one", async () => {
    const at = await scratch();
    await qemuImg("create", "-q", "-f", "raw", at("base.raw"), "1M");
    await qemuImg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", at("over.qcow2"));
    await qemuImage(at("alone.qcow2"), "");
    await using over = await Qcow2Reader.open(at("over.qcow2"));
    await using alone = await Qcow2Reader.open(at("alone.qcow2"));
    expect(over.header).toMatchObject({ version: 3, backingFile: "base.raw", backingFormat: "raw" });
    expect(alone.header.backingFile).toBeUndefined();
  });

  it.each([
    ["encryption", "encrypt.format=aes,encrypt.key-secret=s", "encryption"],
    ["an external data file", "data_file=DATA", "external data file (incompatible feature bit 2)"],
  ])("refuses %s by name", async (_title, options, message) => {
    const at = await scratch();
    const withFile = options.replace("DATA", at("data"));
    const secret = ["--object", "secret,id=s,data=secret"];
    await qemuImg("create", "-q", ...secret, "-f", "qcow2", "-o", withFile, at("disk.qcow2"), "1M");
    await expect(Qcow2Reader.open(at("disk.qcow2"))).rejects.toMatchObject({
      code: "E_QCOW2_UNSUPPORTED",
      message: expect.stringContaining(message) as string,
    });
  });
});

async function written(path: string, geometry: Geometry, wishes: readonly Wish[]): Promise<void> {
  const writer = await Qcow2Writer.create(path, { geometry });
  store(writer, wishes);
  await finished(writer);
}

describe("Qcow2Reader on images of Qcow2Writer", () => {
  it("returns the runs that were written, and their bytes", async () => {
    const at = await scratch();
    let run = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(anyWish, { maxLength: 20 }), async (wishes) => {
        const file = at(`disk${run++}`);
        const geometry = { virtualSize: wishes.length * 16 * KiB, clusterSize: 16 * KiB };
        await written(file, geometry, wishes);
        await using reader = await Qcow2Reader.open(file);
        const expected = wishes.map((w) => (w === "unused" ? "zero" : w));
        expect(await wishesOf(reader)).toEqual(expected);
        const below = fillCluster(9, 0, geometry.virtualSize);
        return expectedBytes(wishes, geometry, 0, below).equals(await bytesOf(reader, below));
      }),
      { numRuns: 40 },
    );
  });

  it("joins runs across L2 tables", async () => {
    const at = await scratch();
    const geometry = { virtualSize: TiB, clusterSize: 16 * KiB };
    const writer = await Qcow2Writer.create(at("disk"), { geometry });
    writer.addRun({ kind: "data", cluster: 1000, count: 10_000, hostOffset: 16 * KiB });
    writer.addRun({ kind: "zero", cluster: 11_000, count: 100_000 });
    await finished(writer);
    expect(await runsOf(at("disk"))).toEqual([
      { kind: "data", cluster: 1000, count: 10_000, hostOffset: 16 * KiB },
      { kind: "zero", cluster: 11_000, count: 100_000 },
    ]);
  });
});

/** Header fields with invalid values. */
const WRONG: readonly (readonly [string, number, number, readonly number[]])[] = [
  ["the magic", 0, 4, [0, 0x514649fa]],
  ["the version", 4, 4, [0, 1, 4]],
  ["the backing name's offset", 8, 8, [8, 65_530, 2 ** 40, 2 ** 62]],
  ["cluster_bits", 20, 4, [0, 8, 22, 0xffffffff]],
  ["the virtual size", 24, 8, [2 ** 45, 2 ** 62]],
  ["the encryption", 32, 4, [1, 2, 9]],
  ["the number of L1 entries", 36, 4, [0, 0x0040_0001, 0xffffffff]],
  ["the L1 table's offset", 40, 8, [0, 512, 2 ** 40, 2 ** 63]],
  ["the refcount table's offset", 48, 8, [0, 512, 2 ** 40, 2 ** 63]],
  ["the refcount table's length", 56, 4, [1000, 0xffffffff]],
  ["the number of snapshots", 60, 4, [0xffffffff]],
  ["the incompatible features", 72, 8, [2, 4, 8, 32, 2 ** 40, 2 ** 63]],
  ["refcount_order", 96, 4, [7, 0xffffffff]],
  ["the header's length", 100, 4, [0, 72, 103, 105, 0x10_0000]],
  ["the first extension's length", 108, 4, [0x7fffffff]],
];

describe("Qcow2Reader on damaged images", () => {
  const geometry = { virtualSize: 32 * 16 * KiB, clusterSize: 16 * KiB };
  const wishes = Array.from(
    { length: 32 },
    (_, i): Wish => (i % 3 === 0 ? "data" : { dataMask: 6, zeroMask: 1 }),
  );

  async function damaged(change: (bytes: Buffer) => Buffer | undefined): Promise<() => Promise<Buffer>> {
    const at = await scratch();
    await written(at("disk"), geometry, wishes);
    const bytes = await readFile(at("disk"));
    await writeFile(at("disk"), change(bytes) ?? bytes);
    return () => readAll(at("disk"));
  }

  const cases = WRONG.flatMap(([what, offset, length, values]) =>
    values.map((value) => [what, value, offset, length] as const),
  );
  it.each(cases)("refuses %s %i", async (_what, value, offset, length) => {
    const read = await damaged((bytes) => {
      if (offset === 108) bytes.writeUInt32BE(0x12345678, 104);
      if (length === 8) bytes.writeBigUInt64BE(BigInt(value), offset);
      else bytes.writeUInt32BE(value, offset);
      return undefined;
    });
    await expect(read()).rejects.toMatchObject({ code: expect.stringMatching(/^E_QCOW2_/) as string });
  });

  it.each([
    [2n, "marked as corrupt (incompatible feature bit 1)"],
    [32n, "an unknown feature (incompatible feature bit 5)"],
    [1n << 63n, "an unknown feature (incompatible feature bit 63)"],
  ])("names the feature bit that it refuses: %i", async (bits, message) => {
    const read = await damaged((bytes) => {
      bytes.writeBigUInt64BE(bits, 72);
      return undefined;
    });
    await expect(read()).rejects.toThrow(message);
  });

  it("tells of an invalid entry after the runs before it", async () => {
    const at = await scratch();
    await written(at("disk"), geometry, wishes);
    const bytes = await readFile(at("disk"));
    bytes.writeBigUInt64BE((1n << 63n) | (1n << 40n), entryAt(bytes, 5));
    await writeFile(at("disk"), bytes);
    await using reader = await Qcow2Reader.open(at("disk"));
    const seen: string[] = [];
    const invalid = (damage: Damage): unknown => seen.push(`invalid ${(damage.guestOffset ?? 0) / 16 / KiB}`);
    for await (const { cluster } of reader.runs(invalid)) seen.push(`run ${cluster}`);
    expect(seen.slice(3, 7)).toEqual(["run 3", "run 4", "invalid 5", "run 6"]);
  });

  /** The position of a guest cluster's entry in the first L2 table. */
  const entryAt = (bytes: Buffer, cluster: number): number => {
    const l1 = Number(bytes.readBigUInt64BE(40));
    return Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n) + cluster * 16;
  };
  it.each([
    ["past the end of the file", (1n << 63n) | (1n << 40n), 0xffffffffn, "points behind the end of the file"],
    ["between clusters", (1n << 63n) | 0x4200n, 0xffffffffn, "points between two clusters"],
    ["to nowhere", 0n, 1n, "has stored subclusters, but no offset"],
    ["copied to nowhere", 1n << 63n, 0n, "is marked as copied, but has no offset"],
    ["with reserved bits", (1n << 63n) | (1n << 57n) | 0x4000n, 1n, "has reserved bits set"],
    ["with contradicting subclusters", (1n << 63n) | 0x4000n, (1n << 32n) | 1n, "both stored and zero"],
    ["compressed, but copied", (3n << 62n) | 0x4000n, 0n, "marked as copied, but is compressed"],
    ["compressed, with subclusters", (1n << 62n) | 0x4000n, 1n, "has subclusters, but is compressed"],
    ["compressed, in the header", (1n << 62n) | 0x200n, 0n, "points into the header"],
  ])("reports an L2 entry that points %s", async (_title, descriptor, bitmap, message) => {
    const read = await damaged((bytes) => {
      bytes.writeBigUInt64BE(descriptor, entryAt(bytes, 5));
      bytes.writeBigUInt64BE(bitmap, entryAt(bytes, 5) + 8);
      return undefined;
    });
    await expect(read()).rejects.toMatchObject({
      code: "E_QCOW2_ENTRY",
      message: expect.stringContaining(message) as string,
      details: { guestOffset: 5 * 16 * KiB },
    });
  });

  it("refuses compressed data that is not a valid stream", async () => {
    const read = await damaged((bytes) => {
      bytes.writeBigUInt64BE((1n << 62n) | 0x4000n, entryAt(bytes, 5));
      bytes.writeBigUInt64BE(0n, entryAt(bytes, 5) + 8);
      return undefined;
    });
    await expect(read()).rejects.toMatchObject({
      code: "E_QCOW2_ENTRY",
      details: { guestOffset: 5 * 16 * KiB },
    });
  });

  it("refuses an L2 table that several L1 entries share, even on an enormous disk", async () => {
    const at = await scratch();
    const large = { virtualSize: 16 * TiB, clusterSize: 64 * KiB };
    const writer = await Qcow2Writer.create(at("disk"), { geometry: large });
    writer.addRun({ kind: "zero", cluster: 0, count: 1 });
    await finished(writer);
    const bytes = await readFile(at("disk"));
    const l1 = Number(bytes.readBigUInt64BE(40));
    for (let i = 1; i < bytes.readUInt32BE(36); i += 1) bytes.copy(bytes, l1 + i * 8, l1, l1 + 8);
    await writeFile(at("disk"), bytes);
    await expect(readAllRuns(at("disk"))).rejects.toThrow("points to the L2 table of another");
  });

  it("refuses a file truncated in its header, its tables or its data", async () => {
    for (const length of [0, 3, 71, 103, 5000, 5 * 16 * KiB]) {
      const read = await damaged((bytes) => bytes.subarray(0, length));
      await expect(read(), `${length} bytes`).rejects.toThrow(DamageError);
    }
  });

  it("refuses anything but a regular file, without waiting for it", async () => {
    const at = await scratch();
    await execa("mkfifo", [at("fifo")]);
    await expect(Qcow2Reader.open(at("fifo"))).rejects.toThrow(DamageError);
    await expect(Qcow2Reader.open("/dev/zero")).rejects.toThrow(DamageError);
    await expect(Qcow2Reader.open(at("nothing"))).rejects.toMatchObject({ code: "ENOENT" });
  });

  it("answers any damage with bytes or a typed error, within a second", async () => {
    const at = await scratch();
    await written(at("sound"), geometry, wishes);
    const sound = await readFile(at("sound"));
    const tables = Number(sound.readBigUInt64BE(40)) - 16 * KiB;
    const place = fc.oneof(
      fc.integer({ min: 0, max: 160 }),
      fc.integer({ min: tables, max: tables + 600 }),
      fc.integer({ min: tables + 16 * KiB, max: tables + 16 * KiB + 16 }),
      fc.integer({ min: 0, max: sound.length - 1 }),
    );
    const value = fc.oneof(fc.constantFrom(0, 1, 0x40, 0x7f, 0x80, 0xff), fc.integer({ min: 0, max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(place, value), { minLength: 1, maxLength: 6 }), async (changes) => {
        const bytes = Buffer.from(sound);
        for (const [offset, byte] of changes) bytes[offset] = byte;
        await writeFile(at("disk"), bytes);
        const before = processorMs();
        await readAllRuns(at("disk")).catch((error: unknown) => {
          expect(error).toMatchObject({ code: expect.stringMatching(/^E_/) as string });
        });
        expect(processorMs() - before).toBeLessThan(2000);
      }),
      { numRuns: 400 },
    );
  });
});

/** Like `readAll`, for disks of any claimed size: reads only the first cluster of each run. */
async function readAllRuns(path: string): Promise<void> {
  await using reader = await Qcow2Reader.open(path);
  const target = Buffer.alloc(reader.geometry.clusterSize);
  for await (const run of reader.runs()) {
    if (run.kind !== "zero" && run.hostOffset !== 0) await reader.readHost(run.hostOffset, target);
  }
}
