/** Chains of points, pulled from qemu-nbd by QEMU's own bitmaps; `qemu-img` is the judge. */

import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { ImageFormat } from "../../src/backup/image/image.js";
import type { CompressionMethod } from "../../src/backup/qcow2/can-compress.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { takePoint } from "../../src/backup/take/take-point.js";
import { verifyPoints } from "../../src/backup/verify/verify.js";
import { parseNbdUri } from "../../src/nbd/index.js";
import { GuestImage } from "../support/guest-image.js";
import { type QemuNbd, qemuImg } from "../support/qemu-nbd.js";
import { restoreDisk } from "../support/restore-disk.js";
import { describeWith } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const DOMAIN = "guest";

/** How the points of a chain are stored. */
interface Manner {
  readonly full: ImageFormat;
  readonly increments: ImageFormat;
  readonly compress?: CompressionMethod;
}

const MANNERS = {
  qcow2: { full: "qcow2", increments: "qcow2" },
  "compressed qcow2": { full: "qcow2", increments: "qcow2", compress: "deflate" },
  raw: { full: "raw", increments: "raw" },
  "qcow2 on a raw full": { full: "raw", increments: "qcow2" },
  "compressed qcow2 on a raw full": { full: "raw", increments: "qcow2", compress: "deflate" },
} satisfies Record<string, Manner>;

/** Each image format once, for tests that hardly depend on the combination. */
const FEW_MANNERS = (["qcow2", "raw", "compressed qcow2 on a raw full"] as const).map(
  (name): [string, Manner] => [name, MANNERS[name]],
);

let folder: string;
let repository: Repository;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-chains-"));
  repository = await Repository.openOrCreate(join(folder, "repo"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

interface TestPoint {
  readonly manifest: Manifest;
  /** Raw copies of the disks made by qemu-img, in disk order. */
  readonly references: readonly string[];
  /** The bytes that nbdinfo counts as dirty on each disk; undefined for a full one. */
  readonly dirtyBytes: readonly (number | undefined)[];
}

/** A guest with some disks, and the points taken of it. */
class Guest {
  readonly points: TestPoint[] = [];
  readonly #disks: readonly GuestImage[];
  readonly #manner: Manner;
  readonly #granularity: number;

  constructor(disks: readonly GuestImage[], manner: Manner, granularity: number) {
    this.#disks = disks;
    this.#manner = manner;
    this.#granularity = granularity;
  }

  /** Takes a full point first, increments after it. */
  async take(): Promise<Manifest> {
    const parent = this.points.at(-1)?.manifest;
    const { full, increments, compress } = this.#manner;
    const format = parent ? increments : full;
    const servers: QemuNbd[] = [];
    try {
      for (const disk of this.#disks) servers.push(await disk.serve());
      const dirtyBytes = await Promise.all(
        servers.map(({ uri }, i) => parent && dirtyBytesOf(uri, this.#disks[i]?.bitmap ?? "")),
      );
      const { manifest } = await takePoint({
        repository,
        domain: { name: DOMAIN, uuid: null },
        disks: this.#disks.map((disk, i) => ({
          name: disk.name,
          address: parseNbdUri(servers[i]?.uri ?? ""),
          increment: parent && { bitmap: disk.bitmap, parent },
        })),
        checkpoint: null,
        format,
        compress: format === "qcow2" ? compress : undefined,
        digests: "xxh64",
        sync: false,
        tool: "test",
        connect: {},
        confirm: async () => undefined,
      });
      for (const server of servers.splice(0)) await server.stop();
      const references: string[] = [];
      for (const disk of this.#disks) references.push(await disk.point(this.#granularity));
      this.points.push({ manifest, references, dirtyBytes });
      return manifest;
    } finally {
      for (const server of servers) await server.stop();
    }
  }
}

async function dirtyBytesOf(uri: string, bitmap: string): Promise<number> {
  const { stdout } = await execa("nbdinfo", [`--map=qemu:dirty-bitmap:${bitmap}`, "--json", uri]);
  const extents = JSON.parse(stdout) as { length: number; type: number }[];
  return extents.filter(({ type }) => type === 1).reduce((sum, { length }) => sum + length, 0);
}

/**
 * Checks every disk of every point: restored by us (the newest in both formats), read by stock QEMU, checked,
 * verified and counted.
 */
async function expectSound({ points }: Guest): Promise<void> {
  for (const [at, { manifest: point, references, dirtyBytes }] of points.entries()) {
    for (const [i, disk] of point.disks.entries()) {
      const reference = references[i] ?? "";
      // A qcow2 target tests the writer, not the chain, so one is enough.
      const isNewest = at === points.length - 1;
      for (const format of isNewest ? (["raw", "qcow2"] as const) : (["raw"] as const)) {
        const targetPath = join(folder, `restored.${format}`);
        await restoreDisk({
          repository,
          point,
          diskName: disk.name,
          targetPath,
          format,
          force: true,
          sync: false,
        });
        await qemuImg("compare", "-f", format, "-F", "raw", targetPath, reference);
      }
      expect(disk).toMatchObject({ virtualSize: (await stat(reference)).size });
      expect(disk.dataBytes + disk.zeroBytes).toBe(disk.dirtyBytes);
      const parent = points[at - 1]?.manifest.disks[i];
      // Where a disk has grown, data counts as dirty whatever the bitmap says, and zeroes don't.
      if (parent === undefined || parent.virtualSize >= disk.virtualSize)
        expect(disk.dirtyBytes).toBe(dirtyBytes[i] ?? disk.virtualSize);
      if (disk.format === "raw") continue;
      const image = join(repository.pointFolder(DOMAIN, point.id), disk.file);
      await qemuImg("check", "-q", "-f", "qcow2", image);
      await qemuImg("compare", "-f", "qcow2", "-F", "raw", image, reference);
      // A conversion reads what the comparison has read.
      if (isNewest) {
        const stock = join(folder, "stock.raw");
        await qemuImg("convert", "-f", "qcow2", "-O", "raw", image, stock);
        await qemuImg("compare", "-f", "raw", "-F", "raw", stock, reference);
      }
      expect(disk.dataBytes).toBe(await ownDataBytes(image, disk.virtualSize));
    }
  }
  const reports = await verifyPoints(
    repository,
    DOMAIN,
    points.map(({ manifest }) => manifest.id),
  );
  expect(reports.flatMap(({ findings }) => findings)).toEqual([]);
}

/** Bytes of data that `qemu-img map` finds in the image itself, not in its backing images. */
async function ownDataBytes(image: string, size: number): Promise<number> {
  const map = JSON.parse(await qemuImg("map", "--output=json", "-f", "qcow2", image)) as {
    start: number;
    length: number;
    depth: number;
    data: boolean;
  }[];
  return map
    .filter(({ depth, data }) => depth === 0 && data)
    .reduce((sum, { start, length }) => sum + Math.min(length, size - start), 0);
}

describeWith(["qemu-nbd", "qemu-img", "qemu-io", "nbdinfo"], "a chain from qemu-nbd", () => {
  /** Bitmap granularities, each with the expected cluster size of the image. */
  const GRANULARITIES: [number, number][] = [
    [512, 16 * KiB],
    [KiB, 16 * KiB],
    [4 * KiB, 64 * KiB],
    [32 * KiB, 64 * KiB],
    [64 * KiB, 64 * KiB],
    [128 * KiB, 64 * KiB],
    [2 * MiB, 64 * KiB],
  ];

  const FEW = GRANULARITIES.filter(([bytes]) => [512, 4 * KiB, 2 * MiB].includes(bytes));

  describe.each([
    ["qcow2", GRANULARITIES],
    ["compressed qcow2", FEW],
    ["raw", FEW],
  ] as const)("stored as %s", (manner, granularities) => {
    it.each(granularities)(
      "restores exactly with a bitmap granularity of %i bytes",
      async (granularity, clusterSize) => {
        const size = 9 * MiB + 5 * 512;
        const disk = await GuestImage.create(folder, "vda", size);
        const guest = new Guest([disk], MANNERS[manner], granularity);
        await disk.io("write -P 1 0 6M", "write -P 2 9M 2560", "write -z 2M 100k");
        await guest.take();
        // Writes alone in their clusters, across cluster boundaries, side by side, and at the very end.
        const unit = granularity;
        await disk.io(
          `write -P 3 ${unit} 512`,
          `write -P 4 ${3 * MiB - 512} 1024`,
          ...Array.from({ length: 20 }, (_, i) => `write -P ${10 + i} ${4 * MiB + i * 3 * unit} 512`).filter(
            (_, i) => 4 * MiB + i * 3 * unit < size - 512,
          ),
          `write -z ${MiB + unit} 512`,
          `discard ${1536 * KiB} 192k`,
          `write -P 5 ${size - 512} 512`,
        );
        await guest.take();
        await disk.io(`write -P 6 ${4 * MiB + unit} 3k`, `write -P 0 ${2 * unit} 512`);
        await guest.take();
        const [full, ...increments] = guest.points.map(({ manifest }) => manifest.disks[0]);
        expect(full?.clusterSize).toBe(64 * KiB);
        expect(increments.map((each) => each?.clusterSize)).toEqual([clusterSize, clusterSize]);
        await expectSound(guest);
      },
    );
  });

  it.each<[string, Manner]>(Object.entries(MANNERS))(
    "follows a disk that grows and shrinks to sizes that are no multiple of a cluster: %s",
    async (_title, manner) => {
      const disk = await GuestImage.create(folder, "vda", 3 * MiB + 3 * 512);
      const guest = new Guest([disk], manner, 64 * KiB);
      await disk.io("write -P 1 0 3147264");
      await guest.take();
      // First growth without a write to the new space, then growth with one.
      await disk.resize(5 * MiB + 512);
      await guest.take();
      await disk.resize(7 * MiB + 7 * 512);
      await disk.io("write -P 2 3M 8k", "write -P 3 7343104 512", "write -P 4 6M 512");
      await guest.take();
      // Shrunk to within the full point, without any write.
      await disk.resize(2 * MiB + 9 * 512);
      await guest.take();
      // What was cut off must not come back.
      await disk.resize(8 * MiB);
      await guest.take();
      await disk.io("write -P 5 2M 64k", "write -P 6 7M 64k");
      await guest.take();
      await disk.resize(MiB + 512);
      await disk.io("write -P 7 1M 512");
      await guest.take();
      const sizes = guest.points.map(({ manifest }) => manifest.disks[0]?.virtualSize);
      expect(sizes).toEqual([
        3 * MiB + 3 * 512,
        5 * MiB + 512,
        7 * MiB + 7 * 512,
        2 * MiB + 9 * 512,
        8 * MiB,
        8 * MiB,
        MiB + 512,
      ]);
      await expectSound(guest);
    },
  );

  it.each(FEW_MANNERS)("may have empty increments anywhere: %s", async (_title, manner) => {
    const disk = await GuestImage.create(folder, "vda", 4 * MiB + 512);
    const guest = new Guest([disk], manner, 64 * KiB);
    await disk.io("write -P 1 1M 1M");
    await guest.take();
    await guest.take();
    await guest.take();
    await disk.io("write -P 2 1M 64k");
    await guest.take();
    await guest.take();
    const counts = guest.points.map(({ manifest }) => manifest.disks[0]?.dirtyBytes);
    expect(counts).toEqual([4 * MiB + 512, 0, 0, 64 * KiB, 0]);
    const [, empty] = guest.points;
    expect(empty?.manifest.disks[0]).toMatchObject({ dataBytes: 0, zeroBytes: 0, storedBytes: 0 });
    if (manner.increments === "raw") {
      const map = join(repository.pointFolder(DOMAIN, empty?.manifest.id ?? ""), "vda.map");
      expect(JSON.parse(await readFile(map, "utf8"))).toEqual([]);
    }
    await expectSound(guest);
  });

  it.each(FEW_MANNERS)("may have a disk that changed and one that did not: %s", async (_title, manner) => {
    const vda = await GuestImage.create(folder, "vda", 2 * MiB);
    const vdb = await GuestImage.create(folder, "vdb", 3 * MiB + 512);
    const guest = new Guest([vda, vdb], manner, 64 * KiB);
    await vda.io("write -P 1 0 1M");
    await vdb.io("write -P 2 2M 1M");
    await guest.take();
    await vdb.io("write -P 3 3M 512");
    const second = await guest.take();
    await vda.io("write -P 4 0 64k");
    const third = await guest.take();
    expect(second.disks.map(({ dirtyBytes }) => dirtyBytes)).toEqual([0, 512]);
    expect(third.disks.map(({ dirtyBytes }) => dirtyBytes)).toEqual([64 * KiB, 0]);
    await expectSound(guest);
  });
});
