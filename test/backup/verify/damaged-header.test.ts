import { open, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { DamageError } from "../../../src/backup/base/errors.js";
import { Qcow2Reader } from "../../../src/backup/qcow2/reader.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import { type Finding, verifyPoints } from "../../../src/backup/verify/verify.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { nbdpull } from "../../support/nbdpull.js";
import { restoreDisk } from "../../support/restore-disk.js";

const CLUSTER = 64 * 1024;
const SIZE = 20 * CLUSTER;

let chain: MemoryChain;
let full: Manifest;
let increment: Manifest;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(4 * CLUSTER, 0x11));
  full = (await chain.take()).manifest;
  chain.disk.write(CLUSTER, Buffer.alloc(512, 0x22));
  increment = (await chain.take()).manifest;
});
afterEach(async () => {
  vi.restoreAllMocks();
  await chain[Symbol.asyncDispose]();
});

/** Overwrites bytes of an image's header. */
async function patch(point: Manifest, at: number, bytes: Buffer): Promise<void> {
  await using file = await open(chain.pathOf(point, "vda.qcow2"), "r+");
  await file.write(bytes, 0, bytes.length, at);
}

const bytes32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
const bytes64 = (value: bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
};

async function findings(): Promise<Finding[]> {
  const ids = await chain.repository.pointIds(MemoryChain.domain);
  const reports = await verifyPoints(chain.repository, MemoryChain.domain, ids);
  expect(reports.map(({ id }) => id)).toEqual(ids);
  return reports.flatMap((report) => report.findings);
}

const restored = async (point: Manifest): Promise<unknown> =>
  await restoreDisk({
    repository: chain.repository,
    point,
    diskName: "vda",
    targetPath: join(chain.folder, "restored.raw"),
    format: "raw",
    force: true,
    sync: false,
  });

describe("a header so damaged that the image cannot be read", () => {
  it.each([
    ["the magic number", 0, bytes32(0x514649fa)],
    ["version 4", 4, bytes32(4)],
    ["the cluster size", 20, bytes32(17)],
    ["the virtual size", 24, bytes64(BigInt(SIZE + CLUSTER))],
    ["an encryption method", 32, bytes32(1)],
    ["the corrupt bit", 72, bytes64(2n)],
    ["an external data file", 72, bytes64(4n)],
    ["a compression type", 72, bytes64(8n)],
    ["an unknown incompatible feature", 72, bytes64(1n << 40n)],
    ["an unknown incompatible feature among the low bits", 72, bytes64(1n << 7n)],
    ["the L1 table's place", 40, bytes64(2n ** 40n)],
    ["the length of the header", 100, bytes32(120)],
  ])("is damage of its point, and the other points are still checked: %s", async (_, at, bytes) => {
    await patch(increment, at, bytes);
    expect(new Set((await findings()).map(({ point }) => point))).toEqual(new Set([increment.id]));
    await expect(restored(increment)).rejects.toBeInstanceOf(DamageError);
    await restored(full);
  });

  it("makes verify and restore exit with 3", async () => {
    await patch(full, 72, bytes64(1n << 40n));
    const { path } = chain.repository;
    const verified = await nbdpull("verify", path, "--json");
    expect(verified.code).toBe(3);
    const report = verified.json() as { points: { id: string; findings: Finding[] }[] };
    expect(report.points.map(({ id }) => id)).toEqual([full.id, increment.id]);
    expect(report.points[0]?.findings).not.toEqual([]);
    const target = join(chain.folder, "out");
    expect((await nbdpull("restore", path, "--to", target)).code).toBe(3);
    expect((await nbdpull("restore", path, "--at", full.id, "--to", target)).code).toBe(3);
    expect(await readdir(target).catch(() => [])).toEqual([]);
  });
});

describe("a header field that only stock QEMU would stumble over", () => {
  it.each([
    ["snapshots that do not exist", 60, bytes32(1)],
    ["a snapshot table", 64, bytes64(BigInt(CLUSTER))],
    ["an unknown autoclear feature", 88, bytes64(1n << 40n)],
    ["bitmaps that do not exist", 88, bytes64(1n)],
    ["raw external data", 88, bytes64(2n)],
    ["the dirty bit", 72, bytes64(1n)],
    ["a refcount width", 96, bytes32(5)],
  ])("is found: %s", async (_, at, bytes) => {
    await patch(increment, at, bytes);
    expect((await findings()).map(({ point, disk }) => [point, disk])).toContainEqual([increment.id, "vda"]);
  });

  it("is found at every byte, from the magic number to the backing file's name", async () => {
    const path = chain.pathOf(increment, "vda.qcow2");
    const bytes = await readFile(path);
    const name = bytes.readUInt32BE(12);
    expect(bytes.toString("latin1", 104, name)).toContain("qcow2");
    const unnoticed: string[] = [];
    for (let at = 0; at < name + bytes.readUInt32BE(16); at += 1) {
      for (const bit of [0x01, 0x80]) {
        const changed = Buffer.from(bytes);
        changed.writeUInt8(changed.readUInt8(at) ^ bit, at);
        await writeFile(path, changed);
        const [report] = await verifyPoints(chain.repository, MemoryChain.domain, [increment.id]);
        if (report?.findings.length === 0) unnoticed.push(`${at}: ${bit}`);
      }
    }
    expect(unnoticed).toEqual([]);
  }, 180_000);
});

describe("unused space", () => {
  it("is a warning of verify, not damage", async () => {
    const path = chain.pathOf(full, "vda.qcow2");
    const bytes = await readFile(path);
    const block = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))));
    // The header's cluster.
    bytes.writeUInt16BE(2, block);
    await writeFile(path, bytes);
    const verified = await nbdpull("verify", chain.repository.path, "--json");
    expect(verified.code).toBe(0);
    expect(verified.stderr).toContain("space that nothing uses: vda: cluster 0 of the file");
    expect(verified.json()).toMatchObject({
      damaged: false,
      points: [{ findings: [{ point: full.id, disk: "vda", severity: "leak" }] }, { findings: [] }],
    });
    const { code, stdout } = await nbdpull("verify", chain.repository.path, "--strict");
    expect(code).toBe(5);
    expect(stdout).toContain(`${full.id}: sound`);
  });
});

describe("a disk with read errors", () => {
  it("is a finding of every point that it affects, and never ends the work", async () => {
    const failure = Object.assign(new Error("EIO: i/o error, read"), { code: "EIO" });
    const reads = vi.spyOn(Qcow2Reader.prototype, "readHost").mockRejectedValue(failure);
    const found = await findings();
    expect(new Set(found.map(({ point }) => point))).toEqual(new Set([full.id, increment.id]));
    for (const { disk, message } of found) {
      expect(disk).toBe("vda");
      expect(message).toContain("EIO");
    }
    reads.mockRestore();
    expect(await findings()).toEqual([]);
  });
});
