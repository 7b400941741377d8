import { writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { Qcow2Reader } from "../../../src/backup/qcow2/reader.js";
import { ClusterUses } from "../../../src/backup/qcow2/refcounts.js";
import { singlyUsed } from "../../../src/backup/qcow2/single-use.js";
import { KiB, scratch } from "../image/support.js";

/** The size from which on more zstd streams fit into a cluster than 15 bits can count. */
const CLUSTER = 256 * KiB;
const L2_ENTRIES = CLUSTER / 8;

/** An image of zstd clusters; all `streams` begin at the same byte of the file. */
function ofOneStream(streams: number): Buffer {
  const tables = Math.ceil(streams / L2_ENTRIES);
  const [l1, refcounts, data] = [1, 2, 3].map((n) => n * CLUSTER) as [number, number, number];
  const image = Buffer.alloc(data + CLUSTER + tables * CLUSTER);
  image.write("QFI\xfb", 0, "latin1");
  image.writeUInt32BE(3, 4);
  image.writeUInt32BE(18, 20);
  image.writeBigUInt64BE(BigInt(streams * CLUSTER), 24);
  image.writeUInt32BE(tables, 36);
  image.writeBigUInt64BE(BigInt(l1), 40);
  image.writeBigUInt64BE(BigInt(refcounts), 48);
  image.writeUInt32BE(1, 56);
  // Bit 3 of the incompatible features: the compression method is in the header.
  image.writeUInt32BE(8, 76);
  image.writeUInt32BE(4, 96);
  image.writeUInt32BE(112, 100);
  image.writeUInt8(1, 104);
  for (let table = 0; table < tables; table += 1) {
    const l2 = data + CLUSTER + table * CLUSTER;
    image.writeBigUInt64BE((1n << 63n) | BigInt(l2), l1 + 8 * table);
    const count = Math.min(L2_ENTRIES, streams - table * L2_ENTRIES);
    for (let i = 0; i < count; i += 1) image.writeBigUInt64BE((1n << 62n) | BigInt(data), l2 + 8 * i);
  }
  return image;
}

async function walk(image: Buffer): Promise<number> {
  const at = await scratch();
  await writeFile(at("disk"), image);
  await using reader = await Qcow2Reader.open(at("disk"));
  let clusters = 0;
  for await (const run of singlyUsed(reader)) clusters += run.count;
  return clusters;
}

describe("streams in one cluster", () => {
  it("can be as many as fit, and are damage beyond that, in large clusters too", async () => {
    // A zstd stream has at least 8 bytes, and one more may begin in the cluster.
    const most = CLUSTER / 8 + 1;
    expect(await walk(ofOneStream(most))).toBe(most);
    await expect(walk(ofOneStream(most + 1))).rejects.toMatchObject({
      code: "E_QCOW2_ENTRY",
      message: expect.stringContaining("more is in use at byte 786432 than fits"),
    });
  });
});

describe("the uses of a cluster", () => {
  it("are counted however many they are", () => {
    const uses = new ClusterUses();
    for (let i = 0; i < 70_000; i += 1) uses.share(5);
    expect(uses.of(5)).toBe(70_000);
    for (let i = 0; i < 20_000; i += 1) uses.claim(6, true);
    expect([uses.of(6), uses.isCopied(6)]).toEqual([20_000, true]);
    expect(uses.claim(5, false)).toBe(false);
    expect([uses.of(5), uses.share(5), uses.of(5)]).toEqual([70_001, false, 70_002]);
  });
});
