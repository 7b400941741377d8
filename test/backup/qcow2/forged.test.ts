/**
 * Images that no program would write: each forged field yields a typed error, quickly and with little memory.
 */
import { truncate, writeFile } from "node:fs/promises";
import { deflateRawSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { parseHeader } from "../../../src/backup/qcow2/header.js";
import { Qcow2Reader } from "../../../src/backup/qcow2/reader.js";
import { processorMs } from "../../support/processor-time.js";
import { bytesOf, KiB, MiB, scratch } from "../image/support.js";

const CLUSTER = 64 * KiB;
const [L1, L2, TABLE, DATA] = [1, 2, 3, 4].map((n) => n * CLUSTER) as [number, number, number, number];
const FILE = 6 * CLUSTER;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

/** A disk of 8 MiB: guest cluster 0 is at `DATA`, the rest is unallocated. */
function forged(change: (image: Buffer) => void, version: 2 | 3 = 3): Buffer {
  const image = Buffer.alloc(FILE);
  image.write("QFI\xfb", 0, "latin1");
  image.writeUInt32BE(version, 4);
  image.writeUInt32BE(16, 20);
  image.writeBigUInt64BE(BigInt(8 * MiB), 24);
  image.writeUInt32BE(1, 36);
  image.writeBigUInt64BE(BigInt(L1), 40);
  image.writeBigUInt64BE(BigInt(TABLE), 48);
  image.writeUInt32BE(1, 56);
  if (version === 3) {
    image.writeUInt32BE(4, 96);
    image.writeUInt32BE(104, 100);
  }
  image.writeBigUInt64BE(COPIED | BigInt(L2), L1);
  image.writeBigUInt64BE(COPIED | BigInt(DATA), L2);
  image.fill(0x5a, DATA);
  change(image);
  return image;
}

/** Reads the whole image; a forged one must take neither much time nor much memory. */
async function read(image: Buffer): Promise<Buffer> {
  const at = await scratch();
  await writeFile(at("disk"), image);
  const started = processorMs();
  const before = process.memoryUsage().arrayBuffers;
  try {
    await using reader = await Qcow2Reader.open(at("disk"));
    return await bytesOf(reader, Buffer.alloc(0));
  } finally {
    expect(processorMs() - started).toBeLessThan(10_000);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 * MiB);
  }
}

const u32 = (at: number, value: number) => (image: Buffer) => void image.writeUInt32BE(value, at);
const u64 = (at: number, value: bigint) => (image: Buffer) => void image.writeBigUInt64BE(value, at);
const all =
  (...changes: ((image: Buffer) => void)[]) =>
  (image: Buffer): void => {
    for (const change of changes) change(image);
  };

describe("a forged header", () => {
  it("is read correctly before any field is forged", async () => {
    for (const version of [2, 3] as const) {
      const bytes = await read(forged(() => undefined, version));
      expect([bytes.length, bytes[0], bytes[CLUSTER]]).toEqual([8 * MiB, 0x5a, 0]);
    }
  });

  it.each([
    ["cluster_bits 8", u32(20, 8), "cluster_bits is 8"],
    ["cluster_bits 63", u32(20, 63), "cluster_bits is 63"],
    ["cluster_bits 2^32-1", u32(20, 0xffffffff), "cluster_bits"],
    ["a virtual size of 2^63", u64(24, 1n << 63n), "beyond 2^53"],
    ["a virtual size of 2^64-1", u64(24, (1n << 64n) - 1n), "beyond 2^53"],
    ["a virtual size that its L1 table is too short for", u64(24, 1n << 40n), "the virtual size needs"],
    ["an L1 table of 2^32-1 entries", u32(36, 0xffffffff), "more than 33554432"],
    ["an L1 table that is longer than the file", u32(36, 0x10_0000), "goes on behind the end"],
    ["an L1 table in the header", u64(40, 0n), "points to the header"],
    ["an L1 table between two clusters", u64(40, BigInt(L1 + 512)), "points between two clusters"],
    ["an L1 table behind the file", u64(40, BigInt(FILE)), "points behind the end"],
    ["an L1 table at 2^62", u64(40, 1n << 62n), "beyond 2^53"],
    ["a refcount table in the header", u64(48, 0n), "points to the header"],
    ["a refcount table between two clusters", u64(48, BigInt(TABLE + 8)), "points between two clusters"],
    ["a refcount table behind the file", u64(48, 1n << 40n), "points behind the end"],
    ["a refcount table of 2^32-1 clusters", u32(56, 0xffffffff), "more than 8388608"],
    ["a refcount table that is longer than the file", u32(56, 100), "goes on behind the end"],
    ["2^32-1 snapshots", u32(60, 0xffffffff), "snapshots"],
    ["refcounts of 2^7 bits", u32(96, 7), "refcount_order is 7"],
    ["a header length that is odd", u32(100, 107), "header is 107 bytes"],
    ["a header length of less than its fields", u32(100, 96), "header is 96 bytes"],
    ["a header length beyond its cluster", u32(100, CLUSTER + 8), `header is ${CLUSTER + 8} bytes`],
    ["an extension of 2^32-1 bytes", all(u32(104, 1), u32(108, 0xffffffff)), "extension at byte 104"],
    [
      "extensions that overlap the backing name",
      all(u64(8, 200n), u32(16, 4), u32(104, 1), u32(108, 100)),
      "extension at byte 104",
    ],
    ["a backing name of 1024 bytes", all(u64(8, 200n), u32(16, 1024)), "1024 bytes at 200"],
    ["a backing name of 2^32-1 bytes", all(u64(8, 200n), u32(16, 0xffffffff)), "doesn't fit"],
    ["a backing name in the header", all(u64(8, 8n), u32(16, 4)), "doesn't fit"],
    ["a backing name behind cluster 0", all(u64(8, BigInt(CLUSTER - 2)), u32(16, 4)), "doesn't fit"],
    ["a backing name at 2^63", u64(8, 1n << 63n), "beyond 2^53"],
    [
      "a compression type without its feature bit",
      all(u32(100, 112), (i) => void i.writeUInt8(1, 104)),
      "contradicts",
    ],
    ["the compression bit without a type", u64(72, 8n), "contradicts"],
    ["extended entries in small clusters", all(u64(72, 16n), u32(20, 12)), "need clusters of 16 KiB"],
    ["the corrupt bit", u64(72, 2n), "marked as corrupt"],
  ])("is damage: %s", async (_title, change, message) => {
    await expect(read(forged(change))).rejects.toMatchObject({
      name: "DamageError",
      code: "E_QCOW2_HEADER",
      message: expect.stringContaining(message) as string,
    });
  });

  it.each([
    ["version 4", u32(4, 4), "version 4"],
    ["version 1", u32(4, 1), "version 1"],
    ["AES", u32(32, 1), "encryption (method 1)"],
    ["LUKS", u32(32, 2), "encryption (method 2)"],
    ["a data file", u64(72, 4n), "external data file"],
    [
      "an unknown compression type",
      all(u64(72, 8n), u32(100, 112), (i) => void i.writeUInt8(2, 104)),
      "compression type 2",
    ],
    ["an unknown feature", u64(72, 1n << 5n), "bit 5"],
    ["an unknown feature among the high bits", u64(72, 1n << 33n), "bit 33"],
  ])("is refused by name if it can't be read: %s", async (_title, change, message) => {
    await expect(read(forged(change))).rejects.toMatchObject({
      code: "E_QCOW2_UNSUPPORTED",
      message: expect.stringContaining(message) as string,
    });
  });

  it("of version 2 is not checked for fields of version 3", async () => {
    const bytes = await read(forged(all(u64(72, 0n), u64(80, 0xffn), u32(96, 99), u32(100, 3)), 2));
    expect(bytes[0]).toBe(0x5a);
  });

  it("of a disk without a byte is read as an empty disk", async () => {
    expect(await read(forged(all(u64(24, 0n), u32(36, 0))))).toHaveLength(0);
  });

  it("may be truncated anywhere", () => {
    const image = forged(() => undefined);
    for (let length = 0; length < 104; length += 1) {
      expect(() => parseHeader(image.subarray(0, length), length)).toThrow(/ends/);
    }
    expect(() => parseHeader(image.subarray(0, 104), 104)).toThrow("points behind the end");
  });
});

describe("a forged table", () => {
  it.each([
    ["an L1 entry into the header", u64(L1, COPIED | 512n), "between two clusters"],
    ["an L1 entry behind the file", u64(L1, COPIED | BigInt(FILE)), "behind the end of the file"],
    ["an L1 entry at 2^55", u64(L1, COPIED | (1n << 55n)), "behind the end of the file"],
    ["an L1 entry with reserved bits", u64(L1, COPIED | BigInt(L2) | 1n), "reserved bits"],
    ["an L1 entry with reserved high bits", u64(L1, (1n << 60n) | BigInt(L2)), "reserved bits"],
    ["an L2 entry behind the file", u64(L2, COPIED | BigInt(FILE)), "behind the end of the file"],
    ["an L2 entry between clusters", u64(L2, COPIED | BigInt(DATA + 512)), "between two clusters"],
    ["an L2 entry into the header", u64(L2, COPIED | 512n), "between two clusters"],
    ["an L2 entry with reserved bits", u64(L2, COPIED | BigInt(DATA) | 2n), "reserved bits"],
    ["an L2 entry with reserved high bits", u64(L2, (1n << 58n) | BigInt(DATA)), "reserved bits"],
    ["an L2 entry that is copied from nowhere", u64(L2, COPIED), "has no offset"],
    ["compressed data past the file", u64(L2, COMPRESSED | BigInt(FILE)), "behind the end of the file"],
    [
      "compressed data that ends past the file",
      u64(L2, COMPRESSED | (255n << 54n) | BigInt(FILE - 512)),
      "behind the end of the file",
    ],
    ["compressed data at 2^53", u64(L2, COMPRESSED | (1n << 53n)), "behind the end of the file"],
    ["compressed data in the header", u64(L2, COMPRESSED | 104n), "into the header"],
    ["compressed data that is copied", u64(L2, COPIED | COMPRESSED | BigInt(DATA)), "is compressed"],
    [
      "compressed data that is no stream",
      all(u64(L2, COMPRESSED | BigInt(DATA)), (i) => void i.fill(0xff, DATA)),
      "can't be decompressed",
    ],
  ])("is reported as damage with its guest offset: %s", async (_title, change, message) => {
    await expect(read(forged(change))).rejects.toMatchObject({
      name: "DamageError",
      code: "E_QCOW2_ENTRY",
      message: expect.stringContaining(message) as string,
      details: { guestOffset: 0 },
    });
  });

  it("is damage in version 2 if it has version 3's zero flag", async () => {
    await expect(read(forged(u64(L2 + 8, 1n), 2))).rejects.toThrow("reserved bits");
  });

  it.each([
    ["far more", deflateRawSync(Buffer.alloc(64 * MiB))],
    ["one byte more", deflateRawSync(Buffer.alloc(CLUSTER + 1, 7))],
    ["one byte less", deflateRawSync(Buffer.alloc(CLUSTER - 1, 7))],
    ["nothing", deflateRawSync(Buffer.alloc(0))],
  ])("is damage if a stream yields %s than a cluster", async (_title, stream) => {
    const image = forged((bytes) => {
      stream.copy(bytes, DATA, 0, Math.min(stream.length, 2 * CLUSTER));
      u64(L2, COMPRESSED | (127n << 54n) | BigInt(DATA))(bytes);
    });
    await expect(read(image)).rejects.toMatchObject({ name: "DamageError", code: "E_QCOW2_ENTRY" });
  });

  it("is read if a stream yields exactly one cluster, whatever follows in its last sector", async () => {
    const image = forged((bytes) => {
      deflateRawSync(Buffer.alloc(CLUSTER, 7)).copy(bytes, DATA + 3);
      u64(L2, COMPRESSED | BigInt(DATA + 3))(bytes);
    });
    expect((await read(image)).subarray(0, CLUSTER).equals(Buffer.alloc(CLUSTER, 7))).toBe(true);
  });

  it("is read quickly even if a sparse file claims an enormous disk", async () => {
    const at = await scratch();
    await writeFile(at("disk"), forged(u32(36, 4 * 1024 * 1024)));
    await truncate(at("disk"), 1024 ** 4);
    await using reader = await Qcow2Reader.open(at("disk"));
    expect(reader.header.l1Entries).toBe(4 * 1024 * 1024);
    expect((await bytesOf(reader, Buffer.alloc(0)))[0]).toBe(0x5a);
  });
});
