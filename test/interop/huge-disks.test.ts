/** Disks of 16 TiB, nearly all zeroes: the effort must follow their extents, not their size. */

import { access, mkdtemp, open, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { ImageFormat } from "../../src/backup/image/image.js";
import type { CompressionMethod } from "../../src/backup/qcow2/can-compress.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { takePoint } from "../../src/backup/take/take-point.js";
import { NbdServer, parseNbdUri } from "../../src/nbd/index.js";
import { GuestImage } from "../support/guest-image.js";
import { nbdpull } from "../support/nbdpull.js";
import { nbdpullMeasured } from "../support/peak-memory.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { SPARSE_BITMAP, type SparseDisk, sparseExport } from "../support/sparse-disk.js";
import { describeWith } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const TiB = 1024 * GiB;
const HUGE = 16 * TiB;
const SMALL = 64 * GiB;

/** What the whole command may use for a disk of any size; Node alone uses some 50 MiB. */
const MOST_MEMORY = 200 * MiB;
/**
 * The difference between disks of 64 GiB and 16 TiB with the same extents; half of it allows for garbage
 * collection.
 */
const MOST_DIFFERENCE = 50 * MiB;

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-huge-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});
const at = (name: string): string => join(folder, name);

/** Runs the command and checks its peak memory against the bound. */
async function bounded(...args: readonly string[]): Promise<number> {
  const { peakBytes } = await nbdpullMeasured(...args, "--quiet");
  expect(peakBytes).toBeLessThan(MOST_MEMORY);
  return peakBytes;
}

/** Compares with the guest's own image: a server would get a QEMU request for each of our tables. */
async function expectSame(image: string, guest: string): Promise<void> {
  await qemuImg("compare", "-U", "-f", "qcow2", "-F", "qcow2", image, guest);
}

describeWith(["qemu-nbd", "qemu-img", "qemu-io"], "a disk of 16 TiB in qemu-nbd", () => {
  /** Data and zeroes at the beginning, in the middle and at the very end, some of it rewritten later. */
  async function story(size: number, granularity: number) {
    const disk = await GuestImage.create(folder, `vda${size}`, size);
    await disk.io("write -P 1 0 1M", `write -P 2 ${size / 2} 1M`, `write -P 3 ${size - 64 * KiB} 64k`);
    const first = `${disk.path}.first.qcow2`;
    await qemuImg("convert", "-f", "qcow2", "-O", "qcow2", disk.path, first);
    await disk.mark(granularity);
    await disk.io(
      `write -P 4 ${size / 4} 64k`,
      `write -z ${size / 2} 64k`,
      `write -P 5 ${size - 512} 512`,
      "discard 0 512k",
    );
    return { disk, first };
  }

  it.each([
    ["plain", []],
    ["compressed", ["--compress"]],
  ])("is pulled as a qcow2 image and an increment in bounded memory: %s", async (_title, options) => {
    const peaks: number[][] = [];
    for (const size of [SMALL, HUGE]) {
      const { disk, first } = await story(size, 64 * KiB);
      await using server = await disk.serve();
      const image = at(`${size}.qcow2`);
      const increment = at(`${size}.inc.qcow2`);
      const based = ["--bitmap", disk.bitmap, "--backing", first];
      peaks.push([
        await bounded("pull", server.uri, image, "--digests", ...options),
        await bounded("pull", server.uri, increment, "--digests", ...options, ...based),
      ]);
      for (const each of [image, increment]) {
        await qemuImg("check", "-q", "-f", "qcow2", each);
        await expectSame(each, disk.path);
        const info = JSON.parse(await qemuImg("info", "--output=json", each)) as Record<string, unknown>;
        expect(info).toMatchObject({ "virtual-size": size, "cluster-size": 64 * KiB });
        expect((await stat(each)).size).toBeLessThan(8 * MiB);
      }
    }
    const [small = [], huge = []] = peaks;
    for (const [i, peak] of huge.entries()) expect(peak - (small[i] ?? 0)).toBeLessThan(MOST_DIFFERENCE);
  });

  it("is pulled by bitmaps with a granularity of 2 MiB and 32 KiB in bounded memory", async () => {
    for (const granularity of [32 * KiB, 2 * MiB]) {
      const { disk, first } = await story(HUGE, granularity);
      await using server = await disk.serve();
      const increment = at(`${granularity}.qcow2`);
      await bounded("pull", server.uri, increment, "--bitmap", disk.bitmap, "--backing", first);
      await qemuImg("check", "-q", "-f", "qcow2", increment);
      await expectSame(increment, disk.path);
      await rm(disk.path);
    }
  });
});

/** A folder whose file system allows files of 16 TiB; ext4 stops 4 KiB short of that. */
async function folderForRaw(): Promise<string | undefined> {
  for (const parent of [tmpdir(), "/dev/shm"]) {
    const path = await mkdtemp(join(parent, "nbdpull-huge-")).catch(() => undefined);
    if (path === undefined) continue;
    await using probe = await open(join(path, "probe"), "w");
    const fits = await probe.truncate(HUGE).then(
      () => true,
      () => false,
    );
    await rm(join(path, "probe"));
    if (fits) return path;
    await rm(path, { recursive: true });
  }
  return undefined;
}

const DATA = [
  { offset: 0, length: MiB, fill: 1 },
  { offset: HUGE / 2, length: MiB, fill: 2 },
  { offset: HUGE - 64 * KiB, length: 64 * KiB, fill: 3 },
];

/** The disk after writes of one block of `unit` bytes each, alone in their clusters and at the very end. */
function written(unit: number): SparseDisk {
  const middle = HUGE / 2;
  const pieces = (offset: number, end: number, marks: readonly number[], fill: number) => {
    const bounds = [offset, ...marks.flatMap((mark) => [mark, mark + unit]), end];
    return bounds
      .slice(1)
      .map((stop, i) => ({ offset: bounds[i] ?? 0, length: stop - (bounds[i] ?? 0), fill: i % 2 ? 9 : fill }))
      .filter(({ length }) => length > 0);
  };
  const marks = [unit, middle + 3 * unit, HUGE - unit];
  return {
    size: HUGE,
    dirty: marks.map((offset) => ({ offset, length: unit })),
    data: [
      ...pieces(0, MiB, [unit], 1),
      ...pieces(middle, middle + MiB, [middle + 3 * unit], 2),
      ...pieces(HUGE - 64 * KiB, HUGE, [HUGE - unit], 3),
    ],
  };
}

describeWith(["qemu-img"], "points of a disk of 16 TiB", () => {
  let raw: string | undefined;
  let shown: SparseDisk;
  let server: NbdServer;
  beforeEach(async () => {
    raw = await folderForRaw();
    server = await NbdServer.listen({
      exports: () => sparseExport(shown),
      address: { path: at("nbd.sock") },
    });
  });
  afterEach(async () => {
    await server[Symbol.asyncDispose]();
    if (raw !== undefined) await rm(raw, { recursive: true });
  });

  interface Taking {
    readonly repository: Repository;
    readonly disk: SparseDisk;
    readonly format: ImageFormat;
    readonly compress?: CompressionMethod | undefined;
    readonly parent?: Manifest | undefined;
  }

  async function take({ repository, disk, format, compress, parent }: Taking): Promise<Manifest> {
    shown = disk;
    const address = parseNbdUri(server.uri("vda"));
    const { manifest } = await takePoint({
      repository,
      domain: { name: "guest", uuid: null },
      disks: [{ name: "vda", address, increment: parent && { bitmap: SPARSE_BITMAP, parent } }],
      checkpoint: null,
      format,
      compress,
      digests: "xxh64",
      sync: false,
      tool: "test",
      connect: {},
      confirm: async () => undefined,
    });
    return manifest;
  }

  const imageOf = (repository: Repository, { id, disks }: Manifest): string =>
    join(repository.pointFolder("guest", id), disks[0]?.file ?? "");

  // Not every combination: each takes seconds.
  describe.each<[string, CompressionMethod | undefined, [number, boolean][]]>([
    [
      "plain",
      undefined,
      [
        [512, true],
        [64 * KiB, false],
      ],
    ],
    [
      "compressed",
      "deflate",
      [
        [512, false],
        [4 * KiB, true],
      ],
    ],
  ])("stored as qcow2, %s", (_title, compress, blocks) => {
    it.each(blocks)(
      "are exact with blocks of %i bytes; clean bytes can't be read: %s",
      async (unit, refusesClean) => {
        const repository = await Repository.openOrCreate(at("repo"));
        const reads: [offset: number, length: number][] = [];
        const full = await take({ repository, disk: { size: HUGE, data: DATA }, format: "qcow2", compress });
        const disk = {
          ...written(unit),
          refusesClean,
          onRead: (...read: [number, number]) => reads.push(read),
        };
        const increment = await take({ repository, disk, format: "qcow2", compress, parent: full });
        expect(increment.disks[0]).toMatchObject({
          clusterSize: unit < 2 * KiB ? 16 * KiB : 64 * KiB,
          virtualSize: HUGE,
          dirtyBytes: 3 * unit,
          dataBytes: 3 * unit,
        });
        if (refusesClean) expect(reads.every(([, length]) => length === unit)).toBe(true);

        await bounded("verify", at("repo"));
        await bounded("restore", at("repo"), "--disk", "vda", "--to", at("restored.qcow2"));
        await qemuImg("check", "-q", "-f", "qcow2", imageOf(repository, increment));
        const expected = await GuestImage.create(folder, "expected", HUGE);
        await expected.io(...disk.data.map((each) => `write -P ${each.fill} ${each.offset} ${each.length}`));
        for (const image of [imageOf(repository, increment), at("restored.qcow2")])
          await expectSame(image, expected.path);
      },
    );
  });

  it("are sparse raw files, restored in bounded memory", async (context) => {
    if (raw === undefined) return context.skip("no file system here has files of 16 TiB");
    const repository = await Repository.openOrCreate(join(raw, "repo"));
    const full = await take({ repository, disk: { size: HUGE, data: DATA }, format: "raw" });
    const disk = written(512);
    const increment = await take({ repository, disk, format: "raw", parent: full });
    for (const point of [full, increment]) {
      const { size, blocks } = await stat(imageOf(repository, point));
      expect(size).toBe(HUGE);
      expect(blocks * 512).toBeLessThan(4 * MiB);
    }
    const map = join(repository.pointFolder("guest", increment.id), "vda.map");
    const extents = JSON.parse(await readFile(map, "utf8")) as { offset: number; length: number }[];
    expect(extents.map(({ offset, length }) => ({ offset, length }))).toEqual(disk.dirty);

    await bounded("restore", join(raw, "repo"), "--disk", "vda", "--to", join(raw, "restored.raw"));
    expect((await stat(join(raw, "restored.raw"))).blocks * 512).toBeLessThan(4 * MiB);
    await qemuImg("compare", "-f", "raw", "-F", "raw", join(raw, "restored.raw"), server.uri("vda"));
  });

  it("fail to restore if no file can be that large, and the error says what to do", async (context) => {
    const probe = await open(at("probe"), "w");
    const refused = await probe.truncate(HUGE).then(
      () => false,
      (error: NodeJS.ErrnoException) => error.code === "EFBIG",
    );
    await probe.close();
    await rm(at("probe"));
    if (!refused) return context.skip("the file system has files of 16 TiB");
    const repository = await Repository.openOrCreate(at("repo"));
    await take({ repository, disk: { size: HUGE, data: DATA }, format: "qcow2" });
    const before = await readdir(folder);
    const ran = await nbdpull("restore", at("repo"), "--disk", "vda", "--to", at("x.raw"), "--json");
    expect(ran.code).toBe(1);
    expect(ran.json()).toMatchObject({ error: { code: "EFBIG" } });
    expect(ran.stdout).toMatch(/can't hold a file of that size.*--format qcow2/);
    expect(await readdir(folder)).toEqual(before);
    await expect(access(at("x.raw"))).rejects.toMatchObject({ code: "ENOENT" });
  });
});
