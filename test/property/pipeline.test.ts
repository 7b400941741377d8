import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import fc from "fast-check";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { ImageFormat } from "../../src/backup/image/image.js";
import { RateLimit } from "../../src/backup/pull/rate-limit.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { takePoint } from "../../src/backup/take/take-point.js";
import { verifyPoints } from "../../src/backup/verify/verify.js";
import { MemoryDisk, NbdServer, parseNbdUri, type ServedExport } from "../../src/nbd/index.js";
import { restoreDisk } from "../support/restore-disk.js";
import { hasBytes } from "../support/same-bytes.js";
import { describeWith } from "../support/tools.js";

const SECTOR = 512;
const SECTORS = 4096;
const DOMAIN = "oracle";

/** What the guest does between two points. The part of a write past the end of the disk has no effect. */
interface Write {
  readonly kind: "data" | "zeroes" | "discard";
  /** In sectors. */
  readonly at: number;
  readonly count: number;
  readonly fill: number;
}

const write: fc.Arbitrary<Write> = fc.record({
  kind: fc.constantFrom("data", "zeroes", "discard"),
  at: fc.oneof(
    { weight: 4, arbitrary: fc.nat(SECTORS - 1) },
    { weight: 1, arbitrary: fc.integer({ min: SECTORS - 2, max: SECTORS + 7 }) },
  ),
  count: fc.oneof(
    { weight: 3, arbitrary: fc.integer({ min: 1, max: 16 }) },
    { weight: 1, arbitrary: fc.integer({ min: 1, max: 1024 }) },
  ),
  fill: fc.nat(255),
});

const round = fc.record({
  writes: fc.array(write, { maxLength: 12 }),
  /** The wanted format; an increment on a raw one is always raw. */
  format: fc.constantFrom<ImageFormat>("qcow2", "qcow2", "raw"),
  /** Applies if the format allows it. */
  compressed: fc.boolean(),
  /** Of the bitmap that begins when the point is taken. */
  granularity: fc.constantFrom(512, 4096, 65_536),
});

const story = fc.record({
  rounds: fc.array(round, { minLength: 2, maxLength: 4 }),
  /** By how many bytes the disk exceeds a whole number of clusters. */
  tail: fc.constantFrom(0, 512, 7 * 512, 577),
  pageSize: fc.constantFrom(4096, 65_536),
  requestSize: fc.constantFrom(65_536, 262_144),
  /** The rate limit of points and restores, in bytes per second. */
  rate: fc.constantFrom(undefined, undefined, 100 * 1024 ** 2),
});

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-property-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

describeWith(["qemu-img"], "the whole pipeline", () => {
  it("rebuilds every point of every story byte for byte, as qemu-img does", async () => {
    let run = 0;
    await fc.assert(
      fc.asyncProperty(story, async ({ rounds, tail, pageSize, requestSize, rate }) => {
        const base = join(folder, String(run++));
        const size = SECTORS * SECTOR + tail;
        const disk = new MemoryDisk({ size, pageSize });
        const oracle = Buffer.alloc(size);
        let frozen: ServedExport = disk.freeze();
        const repository = await Repository.openOrCreate(join(base, "repo"));
        await using server = await NbdServer.listen({
          exports: () => frozen,
          address: { path: join(base, "nbd.sock") },
        });
        const rateLimit = rate === undefined ? undefined : new RateLimit(rate);
        const window = { requestSize, inFlight: 4 * requestSize };
        const points: { manifest: Manifest; content: Buffer }[] = [];
        for (const { writes, format, compressed, granularity } of rounds) {
          for (const w of writes) apply(w, disk, oracle);
          frozen = disk.freeze();
          const parent = points.at(-1)?.manifest;
          const pointFormat = isRawIncrement(parent) ? "raw" : format;
          const { manifest } = await takePoint({
            repository,
            domain: { name: DOMAIN, uuid: null },
            disks: [
              {
                name: "vda",
                address: parseNbdUri(server.uri("vda")),
                increment: parent && { bitmap: "b", parent },
              },
            ],
            checkpoint: null,
            format: pointFormat,
            compress: compressed && pointFormat === "qcow2" ? "deflate" : undefined,
            digests: "xxh64",
            sync: false,
            tool: "test",
            connect: {},
            window,
            rateLimit,
            confirm: async () => undefined,
          });
          points.push({ manifest, content: Buffer.from(oracle) });
          disk.startBitmap("b", granularity);
        }
        for (const { manifest, content } of points) {
          await expectRestored({ repository, point: manifest, window, rateLimit }, content, base);
          if (manifest.disks[0]?.format === "qcow2")
            await expectStockRestore(repository, manifest, content, base);
        }
        const reports = await verifyPoints(repository, DOMAIN, await repository.pointIds(DOMAIN));
        expect(reports.flatMap(({ findings }) => findings)).toEqual([]);
        await rm(base, { recursive: true });
      }),
      { numRuns: 25 },
    );
  }, 480_000);
});

function apply({ kind, at, count, fill }: Write, disk: MemoryDisk, oracle: Buffer): void {
  const offset = at * SECTOR;
  const length = Math.min(count * SECTOR, oracle.length - offset);
  if (length <= 0) return;
  if (kind === "data") disk.write(offset, Buffer.alloc(length, fill));
  else if (kind === "zeroes") disk.writeZeroes(offset, length);
  else disk.discard(offset, length);
  oracle.fill(kind === "data" ? fill : 0, offset, offset + length);
}

/** Stock QEMU would read the clean areas of a raw increment as zeroes, so no qcow2 image is based on one. */
function isRawIncrement(point: Manifest | undefined): boolean {
  return point?.disks.some(({ format, mode }) => format === "raw" && mode === "incremental") ?? false;
}

async function expectRestored(
  options: Pick<Parameters<typeof restoreDisk>[0], "repository" | "point" | "window" | "rateLimit">,
  content: Buffer,
  base: string,
): Promise<void> {
  const targetPath = join(base, "ours.raw");
  await restoreDisk({ ...options, diskName: "vda", targetPath, format: "raw", force: true, sync: false });
  expect(hasBytes(targetPath, content)).toBe(true);
}

/** What a user can do with only the folder and QEMU. A qcow2 disk has whole sectors, padded with zeroes. */
async function expectStockRestore(
  repository: Repository,
  point: Manifest,
  content: Buffer,
  base: string,
): Promise<void> {
  const image = join(repository.pointFolder(DOMAIN, point.id), point.disks[0]?.file ?? "");
  const target = join(base, "theirs.raw");
  await promisify(execFile)("qemu-img", ["check", "-q", image]);
  await promisify(execFile)("qemu-img", ["convert", "-O", "raw", image, target]);
  const theirs = await readFile(target);
  expect(theirs.subarray(0, content.length).equals(content)).toBe(true);
  expect(theirs.subarray(content.length).every((byte) => byte === 0)).toBe(true);
}
