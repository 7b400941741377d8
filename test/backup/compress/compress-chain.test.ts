import { open, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import { verifyPoints } from "../../../src/backup/verify/verify.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { noise } from "../../support/noise.js";
import { qemuImg } from "../../support/qemu-nbd.js";
import { restoreDisk } from "../../support/restore-disk.js";
import { describeWith } from "../../support/tools.js";
import { assertSound } from "../image/support.js";

const KiB = 1024;
const CLUSTER = 64 * KiB;
const SIZE = 80 * CLUSTER + 5 * 512;
const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const text = (length: number, word: string): Buffer => Buffer.alloc(length, `${word} and so on `);

/**
 * A compressed full, a compressed increment and an uncompressed one; the bitmaps have blocks of
 * `granularity`.
 */
async function threePoints(granularity: number): Promise<void> {
  chain.disk.write(0, text(40 * CLUSTER, "first"));
  chain.disk.write(40 * CLUSTER, noise(4 * CLUSTER, 1));
  chain.disk.write(SIZE - 700, text(700, "end"));
  await chain.take({ compress: "deflate", granularity });
  chain.disk.write(3 * CLUSTER + granularity, text(granularity, "second"));
  chain.disk.write(5 * CLUSTER, text(3 * CLUSTER, "second"));
  chain.disk.write(8 * CLUSTER, noise(CLUSTER, 2));
  chain.disk.writeZeroes(10 * CLUSTER, 3 * CLUSTER);
  chain.disk.writeZeroes(20 * CLUSTER + granularity, granularity);
  chain.disk.write(41 * CLUSTER, text(CLUSTER, "second"));
  chain.disk.write(SIZE - 512, text(512, "END"));
  await chain.take({ compress: "deflate", granularity });
  chain.disk.write(5 * CLUSTER, text(512, "third"));
  chain.disk.write(11 * CLUSTER, text(CLUSTER, "third"));
  chain.disk.discard(6 * CLUSTER, CLUSTER);
  await chain.take({ granularity });
}

async function restored(point: Manifest, format: "raw" | "qcow2" = "raw"): Promise<string> {
  const targetPath = join(chain.folder, `restored.${format}`);
  const { repository } = chain;
  await restoreDisk({ repository, point, diskName: "vda", targetPath, format, force: true, sync: false });
  return targetPath;
}

async function contentOf(point: Manifest): Promise<Buffer> {
  return Buffer.from((await chain.contents.get(point.id)?.read(0, SIZE)) ?? []);
}

const findings = async () =>
  (await verifyPoints(chain.repository, DOMAIN, await chain.repository.pointIds(DOMAIN))).flatMap(
    (report) => report.findings,
  );

describeWith(["qemu-img"], "a chain of compressed images", () => {
  it.each([512, 4 * KiB, 64 * KiB])(
    "is restored and verified by us, and restored by stock QEMU, with a bitmap granularity of %i bytes",
    async (granularity) => {
      await threePoints(granularity);
      for (const point of chain.points) {
        const image = chain.pathOf(point, "vda.qcow2");
        await assertSound(image);
        const content = await contentOf(point);
        const ours = await readFile(await restored(point));
        expect(ours.equals(content)).toBe(true);
        const stock = join(chain.folder, "stock.raw");
        await qemuImg("convert", "-f", "qcow2", "-O", "raw", image, stock);
        expect((await readFile(stock)).subarray(0, SIZE).equals(content)).toBe(true);
        await qemuImg("compare", "-f", "qcow2", "-F", "qcow2", image, await restored(point, "qcow2"));
      }
      expect(await findings()).toEqual([]);
      const [full, second, third] = chain.points.map(({ disks: [disk] }) => disk);
      expect(full?.storedBytes).toBeLessThan(6 * CLUSTER);
      expect(full?.dataBytes).toBeGreaterThanOrEqual(44 * CLUSTER);
      expect(second?.storedBytes).toBeLessThan(second?.dataBytes ?? 0);
      expect(third).toMatchObject({ mode: "incremental", parent: chain.points[1]?.id });
      const { size } = await stat(chain.pathOf(chain.points[0] as Manifest, "vda.qcow2"));
      expect(size).toBeLessThan((full?.storedBytes ?? 0) + 8 * CLUSTER);
    },
  );

  it("has damage reported at its guest offset, and is not restored", async () => {
    await threePoints(64 * KiB);
    const point = chain.points[1] as Manifest;
    const path = chain.pathOf(point, "vda.qcow2");
    await using file = await open(path, "r+");
    // In the first stream, after the header cluster.
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, CLUSTER + 40);
    await file.write(Buffer.from([(byte[0] ?? 0) ^ 0x55]), 0, 1, CLUSTER + 40);
    const found = await findings();
    expect(found).toHaveLength(1);
    expect(found[0]).toMatchObject({ guestOffset: 4 * CLUSTER });
    await expect(restored(chain.points[2] as Manifest)).rejects.toMatchObject({ name: "DamageError" });
  });

  it("has each damaged cluster reported once, even if its neighbours are damaged", async () => {
    await threePoints(64 * KiB);
    const path = chain.pathOf(chain.points[0] as Manifest, "vda.qcow2");
    const bytes = await readFile(path);
    // The full copy's streams lie back to back after the header cluster, each a few hundred bytes long.
    bytes.fill(0xff, CLUSTER + 100, CLUSTER + 1100);
    await using file = await open(path, "r+");
    await file.write(bytes, CLUSTER, 2000, CLUSTER);
    const found = await findings();
    const damaged = found.flatMap(({ guestOffset = 0, length = 0 }) =>
      Array.from({ length: length / CLUSTER }, (_, i) => guestOffset / CLUSTER + i),
    );
    expect(damaged.length).toBeGreaterThan(1);
    expect(new Set(damaged).size).toBe(damaged.length);
  });
});
