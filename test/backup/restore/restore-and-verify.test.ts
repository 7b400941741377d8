import {
  copyFile,
  cp,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DamageError } from "../../../src/backup/base/errors.js";
import { findChain } from "../../../src/backup/chain/chain.js";
import { choosePoint } from "../../../src/backup/repository/choose-point.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import { Repository } from "../../../src/backup/repository/repository.js";
import { type Finding, verifyPoints } from "../../../src/backup/verify/verify.js";
import { flipByte } from "../../support/flip-byte.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { restoreDisk } from "../../support/restore-disk.js";

const KiB = 1024;
const CLUSTER = 64 * KiB;
const SIZE = 40 * CLUSTER + 3 * 512;
const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const fill = (length: number, value: number): Buffer => Buffer.alloc(length, value);

/** A full and two increments with data, zeroes and a rewritten tail. */
async function threePoints(
  format: "qcow2" | "raw" = "qcow2",
  algorithm: "xxh64" | "sha256" | "none" = "xxh64",
): Promise<void> {
  const digests = algorithm === "none" ? undefined : algorithm;
  chain.disk.write(0, fill(20 * CLUSTER, 0x11));
  chain.disk.write(SIZE - 700, fill(700, 0x12));
  await chain.take({ format, digests });
  chain.disk.write(3 * CLUSTER + 512, fill(512, 0x22));
  chain.disk.writeZeroes(8 * CLUSTER, 3 * CLUSTER);
  await chain.take({ format, digests });
  chain.disk.write(9 * CLUSTER, fill(CLUSTER, 0x33));
  chain.disk.discard(0, CLUSTER);
  chain.disk.write(SIZE - 512, fill(512, 0x34));
  await chain.take({ format, digests });
}

const pointAt = (index: number): Manifest => {
  const point = chain.points.at(index);
  if (!point) throw new Error("no such point");
  return point;
};

async function restored(point: Manifest, options: { format?: "raw" | "qcow2" } = {}): Promise<Buffer> {
  const targetPath = join(chain.folder, "restored");
  const { format = "raw" } = options;
  await restoreDisk({
    repository: chain.repository,
    point,
    diskName: "vda",
    targetPath,
    format,
    force: true,
    sync: false,
  });
  return await readFile(targetPath);
}

async function expectExact(point: Manifest): Promise<void> {
  const content = chain.contents.get(point.id);
  expect((await restored(point)).equals(Buffer.from((await content?.read(0, SIZE)) ?? []))).toBe(true);
}

async function findings(...ids: string[]): Promise<Finding[]> {
  const all = ids.length > 0 ? ids : await chain.repository.pointIds(DOMAIN);
  return (await verifyPoints(chain.repository, DOMAIN, all)).flatMap((report) => report.findings);
}

/** Flips one bit in a point's file. */
describe("restore", () => {
  it.each(["qcow2", "raw"] as const)("rebuilds every point of a chain of %s images", async (format) => {
    await threePoints(format);
    for (const point of chain.points) await expectExact(point);
    expect(await findings()).toEqual([]);
  });

  it("follows the manifests, not modification times, in a copied repository", async () => {
    await threePoints();
    const copy = join(chain.folder, "copy");
    await cp(chain.repository.path, copy, { recursive: true });
    for (const [i, point] of chain.points.entries()) {
      await utimes(join(copy, DOMAIN, point.id), i, 1_000_000 - i);
    }
    const repository = await Repository.open(copy);
    const latest = await choosePoint(repository, DOMAIN, "latest");
    expect(latest.id).toBe(pointAt(-1).id);
    expect((await findChain(repository, DOMAIN, latest, "vda")).map(({ point }) => point.id)).toEqual(
      chain.points.map(({ id }) => id).reverse(),
    );
  });

  it("finds a point by ID, by time and as the latest", async () => {
    await threePoints();
    const { repository } = chain;
    const middle = pointAt(1);
    expect((await choosePoint(repository, DOMAIN, middle.id)).id).toBe(middle.id);
    expect((await choosePoint(repository, DOMAIN, middle.createdAt)).id).toBe(middle.id);
    expect((await choosePoint(repository, DOMAIN, "2100-01-01")).id).toBe(pointAt(2).id);
    await expect(choosePoint(repository, DOMAIN, "1999-01-01")).rejects.toMatchObject({ code: "E_NO_POINT" });
    await expect(choosePoint(repository, DOMAIN, "yesteryear")).rejects.toMatchObject({
      code: "E_BAD_POINT",
    });
  });

  it("never writes data that a digest does not prove, and leaves nothing behind", async () => {
    await threePoints();
    await flipByte(chain.pathOf(pointAt(0), "vda.qcow2"), 5 * CLUSTER + 99);
    const before = await readdir(chain.folder);
    const failure = restored(pointAt(2));
    await expect(failure).rejects.toBeInstanceOf(DamageError);
    await expect(failure).rejects.toMatchObject({
      details: { point: pointAt(0).id, disk: "vda", guestOffset: 4 * CLUSTER },
    });
    expect(await readdir(chain.folder)).toEqual(before);
  });

  it("says which point is missing", async () => {
    await threePoints();
    await rm(join(chain.repository.path, DOMAIN, pointAt(1).id), { recursive: true });
    await expect(restored(pointAt(2))).rejects.toThrow(new RegExp(`needs point ${pointAt(1).id}.*missing`));
    await expectExact(pointAt(0));
    expect(await findings()).toMatchObject([
      { point: pointAt(2).id, disk: "vda", message: expect.stringContaining("missing") },
    ]);
  });

  it("restores other points even if one manifest is unreadable", async () => {
    await threePoints();
    await writeFile(chain.pathOf(pointAt(2), "point.json"), "{");
    await expectExact(await choosePoint(chain.repository, DOMAIN, pointAt(1).id));
    await expect(choosePoint(chain.repository, DOMAIN, "latest")).rejects.toBeInstanceOf(DamageError);
  });

  it("does not follow a link out of the point's folder", async () => {
    await threePoints();
    const image = chain.pathOf(pointAt(2), "vda.qcow2");
    await rename(image, join(chain.folder, "elsewhere.qcow2"));
    await symlink(join(chain.folder, "elsewhere.qcow2"), image);
    await expect(restored(pointAt(2))).rejects.toThrow(/not a plain file/);
  });

  it("refuses a loop in the chain", async () => {
    await threePoints();
    const path = chain.pathOf(pointAt(0), "point.json");
    const manifest = JSON.parse(await readFile(path, "utf8")) as {
      level: string;
      disks: { mode: string; parent: string }[];
    };
    Object.assign(manifest, { level: "incremental" });
    Object.assign(manifest.disks[0] ?? {}, { mode: "incremental", parent: pointAt(2).id });
    await writeFile(path, JSON.stringify(manifest));
    await expect(restored(pointAt(2))).rejects.toThrow(/a parent is older than what is based on it/);
  });

  it("reports that layers without digests were copied unproven", async () => {
    await threePoints("qcow2", "none");
    const result = await restoreDisk({
      repository: chain.repository,
      point: pointAt(2),
      diskName: "vda",
      targetPath: join(chain.folder, "x.raw"),
      format: "raw",
      force: false,
      sync: false,
    });
    expect(result).toMatchObject({
      checked: false,
      proven: false,
      chain: [...chain.points].reverse().map(({ id }) => id),
    });
    await expectExact(pointAt(2));
  });
});

describe("verify", () => {
  it.each(["xxh64", "sha256"] as const)(
    "finds nothing in a sound chain (%s), and a flipped bit of data by its guest offset",
    async (algorithm) => {
      await threePoints("qcow2", algorithm);
      expect(await findings()).toEqual([]);
      await flipByte(chain.pathOf(pointAt(1), "vda.qcow2"), CLUSTER + 513);
      expect(await findings()).toEqual([
        {
          point: pointAt(1).id,
          disk: "vda",
          severity: "damage",
          guestOffset: 3 * CLUSTER,
          length: CLUSTER,
          message: expect.stringContaining("digest"),
        },
      ]);
    },
  );

  it("finds a table entry changed from zero to clean, which would bring back stale data", async () => {
    await threePoints();
    const image = chain.pathOf(pointAt(1), "vda.qcow2");
    const bytes = await readFile(image);
    // The L2 table contains three adjacent zero entries.
    const zeroes = Buffer.from("000000000000000100000000000000010000000000000001", "hex");
    const entry = bytes.indexOf(zeroes);
    expect(entry).toBeGreaterThan(0);
    bytes.fill(0, entry, entry + 8);
    await writeFile(image, bytes);
    expect(await findings()).toEqual([
      {
        point: pointAt(1).id,
        disk: "vda",
        severity: "damage",
        guestOffset: 8 * CLUSTER,
        length: CLUSTER,
        message: expect.stringContaining("lost a cluster of zero"),
      },
    ]);
    await expect(restored(pointAt(2))).rejects.toBeInstanceOf(DamageError);
  });

  it("finds a cluster that the point does not define", async () => {
    await threePoints();
    const image = chain.pathOf(pointAt(1), "vda.qcow2");
    const bytes = await readFile(image);
    const zeroes = Buffer.from("000000000000000100000000000000010000000000000001", "hex");
    const entry = bytes.indexOf(zeroes);
    bytes.writeBigUInt64BE(1n, entry + 3 * 8);
    await writeFile(image, bytes);
    expect(await findings()).toMatchObject([
      { guestOffset: 11 * CLUSTER, message: expect.stringContaining("does not have") },
    ]);
  });

  it("finds a file that is truncated, swapped or missing", async () => {
    await threePoints();
    const image = chain.pathOf(pointAt(2), "vda.qcow2");
    const whole = await readFile(image);
    await truncate(image, whole.length - CLUSTER);
    expect((await findings(pointAt(2).id)).length).toBeGreaterThan(0);
    await copyFile(chain.pathOf(pointAt(1), "vda.qcow2"), image);
    expect((await findings(pointAt(2).id)).length).toBeGreaterThan(0);
    await rm(image);
    expect(await findings(pointAt(2).id)).toMatchObject([
      { message: expect.stringMatching(/missing|no such file/i) },
    ]);
    await writeFile(image, whole);
    expect(await findings()).toEqual([]);
  });

  it("finds a digest file that was changed or swapped", async () => {
    await threePoints();
    await flipByte(chain.pathOf(pointAt(0), "vda.digests"), 70);
    await copyFile(chain.pathOf(pointAt(1), "vda.digests"), chain.pathOf(pointAt(2), "vda.digests"));
    const found = await findings();
    expect(new Set(found.map(({ point }) => point))).toEqual(new Set([pointAt(0).id, pointAt(2).id]));
  });

  it("finds data in a raw image where zeroes should be, even in holes", async () => {
    await threePoints("raw");
    expect(await findings()).toEqual([]);
    await flipByte(chain.pathOf(pointAt(0), "vda.raw"), 30 * CLUSTER);
    await flipByte(chain.pathOf(pointAt(1), "vda.raw"), 8 * CLUSTER);
    await flipByte(chain.pathOf(pointAt(2), "vda.raw"), SIZE - 1);
    await flipByte(chain.pathOf(pointAt(2), "vda.map"), 5);
    const found = await findings();
    expect(found.map(({ point }) => chain.points.findIndex(({ id }) => id === point))).toEqual([0, 1, 2]);
  });

  it("finds a header whose backing file is not the parent", async () => {
    await threePoints();
    const image = chain.pathOf(pointAt(2), "vda.qcow2");
    const bytes = await readFile(image);
    const at = bytes.indexOf(pointAt(1).id);
    bytes.write(pointAt(0).id, at, "latin1");
    await writeFile(image, bytes);
    expect(await findings()).toMatchObject([
      { point: pointAt(2).id, message: expect.stringContaining("backing file") },
    ]);
  });

  it("goes on after damage and reports all of it, with neighbours joined", async () => {
    chain.disk.write(0, fill(SIZE, 0x11));
    await chain.take();
    const image = chain.pathOf(pointAt(0), "vda.qcow2");
    for (const cluster of [2, 3, 4, 7, 30, 40]) await flipByte(image, (cluster + 1) * CLUSTER + 5);
    expect((await findings()).map(({ guestOffset, length }) => [guestOffset, length])).toEqual([
      [2 * CLUSTER, 3 * CLUSTER],
      [7 * CLUSTER, CLUSTER],
      [30 * CLUSTER, CLUSTER],
      [40 * CLUSTER, SIZE - 40 * CLUSTER],
    ]);
  });

  it("reports what an invalid table entry has cost, and checks all other entries", async () => {
    await threePoints();
    const image = chain.pathOf(pointAt(0), "vda.qcow2");
    const bytes = await readFile(image);
    const tables = Number(bytes.readBigUInt64BE(40));
    const table = Number(bytes.readBigUInt64BE(tables) & 0xff_ffff_ffff_fe00n);
    bytes.writeBigUInt64BE((1n << 63n) | (1n << 40n), table + 2 * 8);
    await writeFile(image, bytes);
    await flipByte(image, 10 * CLUSTER);
    expect(await findings()).toMatchObject([
      {
        severity: "damage",
        guestOffset: 2 * CLUSTER,
        length: CLUSTER,
        message: expect.stringContaining("points behind the end"),
      },
      {
        severity: "damage",
        guestOffset: 2 * CLUSTER,
        length: CLUSTER,
        message: expect.stringContaining("lost a cluster of data"),
      },
      {
        severity: "damage",
        guestOffset: 9 * CLUSTER,
        length: CLUSTER,
        message: expect.stringContaining("digest differs"),
      },
      { severity: "leak", message: expect.stringContaining("references are 0") },
    ]);
  });
});
