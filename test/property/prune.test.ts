import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import fc from "fast-check";
import { afterAll, afterEach, beforeAll, expect, it, vi } from "vitest";
import type { ImageFormat } from "../../src/backup/image/image.js";
import { prune } from "../../src/backup/prune/prune.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { takePoint } from "../../src/backup/take/take-point.js";
import { verifyPoints } from "../../src/backup/verify/verify.js";
import { MemoryDisk, NbdServer, parseNbdUri, type ServedExport } from "../../src/nbd/index.js";
import { propertyRuns } from "../support/property-runs.js";
import { restoreDisk } from "../support/restore-disk.js";
import { hasBytes } from "../support/same-bytes.js";
import { describeWith } from "../support/tools.js";

const SECTOR = 512;
const SECTORS = 2048;
const DOMAIN = "oracle";
const RUNS = 15;
const DAY_MS = 24 * 60 * 60 * 1000;

const write = fc.record({
  kind: fc.constantFrom("data", "zeroes", "discard"),
  at: fc.nat(SECTORS - 1),
  count: fc.oneof(fc.integer({ min: 1, max: 16 }), fc.integer({ min: 64, max: 1024 })),
  fill: fc.nat(255),
});

const round = fc.record({
  writes: fc.array(write, { maxLength: 8 }),
  /** The wanted format; an increment on a raw one is always raw. */
  format: fc.constantFrom<ImageFormat>("qcow2", "qcow2", "qcow2", "raw"),
  compressed: fc.boolean(),
  digests: fc.constantFrom<"xxh64" | "sha256" | undefined>("xxh64", "xxh64", "xxh64", "sha256", undefined),
  granularity: fc.constantFrom(512, 4096, 65_536),
  /** How far back the parent is; beyond the first point means a full one. */
  back: fc.constantFrom(1, 1, 1, 1, 2, 100),
  /** The size of the disk in bytes, undefined for the whole disk. Disks are resized between points. */
  cut: fc.constantFrom(undefined, undefined, undefined, 600 * 1024 + 577, 512 * 1024, 768 * 1024 + 100),
  /** Days since the previous point. */
  days: fc.constantFrom(0, 0, 1),
});

const story = fc.record({
  rounds: fc.array(round, { minLength: 3, maxLength: 7 }),
  /** Otherwise few stories would contain a chain of raw images. */
  allRaw: fc.constantFrom(false, false, true),
  tail: fc.constantFrom(0, 512, 577),
  /** Days to keep, for successive prunes. */
  keeps: fc.constantFrom([3, 1], [2], [1], [2, 2, 1]),
});

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-prune-property-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});
afterEach(() => {
  vi.useRealTimers();
});

describeWith(["qemu-img"], "prune", () => {
  it("leaves every kept point of every story unchanged, for us and for qemu-img", async () => {
    let run = 0;
    let merged = 0;
    await fc.assert(
      fc.asyncProperty(story, async ({ rounds, allRaw, tail, keeps }) => {
        vi.useFakeTimers({ toFake: ["Date"] });
        const base = join(folder, String(run++));
        const size = SECTORS * SECTOR + tail;
        const disk = new MemoryDisk({ size });
        const oracle = Buffer.alloc(size);
        let frozen: ServedExport = disk.freeze();
        const repository = await Repository.openOrCreate(join(base, "repo"));
        await using server = await NbdServer.listen({
          exports: () => frozen,
          address: { path: join(base, "nbd.sock") },
        });
        const points: { manifest: Manifest; content: Buffer }[] = [];
        let now = Date.UTC(2026, 0, 1, 12);
        for (const [
          index,
          { writes, format, compressed, digests, granularity, back, cut, days },
        ] of rounds.entries()) {
          now += days * DAY_MS + 1000;
          vi.setSystemTime(now);
          for (const { kind, at, count, fill } of writes) {
            const offset = at * SECTOR;
            const length = Math.min(count * SECTOR, size - offset);
            if (kind === "data") disk.write(offset, Buffer.alloc(length, fill));
            else if (kind === "zeroes") disk.writeZeroes(offset, length);
            else disk.discard(offset, length);
            oracle.fill(kind === "data" ? fill : 0, offset, offset + length);
          }
          const present = cut ?? size;
          if (present < size) {
            disk.discard(present, size - present);
            oracle.fill(0, present);
          }
          frozen = { ...disk.freeze(), size: present };
          const parent = points.at(index - back)?.manifest;
          const increment = parent && index >= back ? { bitmap: `b${index - back}`, parent } : undefined;
          const onRaw = increment?.parent.disks.some((d) => d.format === "raw" && d.mode === "incremental");
          const pointFormat = onRaw || allRaw ? "raw" : format;
          const { manifest } = await takePoint({
            repository,
            domain: { name: DOMAIN, uuid: null },
            disks: [{ name: "vda", address: parseNbdUri(server.uri("vda")), increment }],
            checkpoint: null,
            format: pointFormat,
            compress: compressed && pointFormat === "qcow2" ? "deflate" : undefined,
            digests,
            sync: false,
            tool: "test",
            connect: {},
            confirm: async () => undefined,
          });
          points.push({ manifest, content: Buffer.from(oracle.subarray(0, present)) });
          disk.startBitmap(`b${index}`, granularity);
        }
        for (const daily of keeps) {
          const options = { repository, domain: DOMAIN, retention: { daily }, dryRun: false, sync: false };
          const planned = await prune({ ...options, dryRun: true });
          const done = await prune(options);
          merged += done.merges.length;
          expect(done.points).toEqual(planned.points);
          const kept = done.points.filter(({ action }) => action === "keep").map(({ id }) => id);
          expect(await repository.pointIds(DOMAIN)).toEqual(kept);
          const left = await readdir(join(repository.path, DOMAIN));
          expect(left.sort()).toEqual(kept);
          for (const id of kept) {
            const content = points.find(({ manifest }) => manifest.id === id)?.content ?? Buffer.alloc(0);
            await expectPoint(repository, await repository.point(DOMAIN, id), content, base);
          }
          const reports = await verifyPoints(repository, DOMAIN, kept);
          expect(reports.flatMap(({ findings }) => findings)).toEqual([]);
        }
        await rm(base, { recursive: true });
      }),
      propertyRuns(RUNS),
    );
    if (process.env["PROPERTY_PATH"] === undefined) expect(merged).toBeGreaterThan(RUNS / 3);
  }, 480_000);
});

async function expectPoint(
  repository: Repository,
  point: Manifest,
  content: Buffer,
  base: string,
): Promise<void> {
  const ours = join(base, "ours.raw");
  await restoreDisk({
    repository,
    point,
    domain: DOMAIN,
    diskName: "vda",
    targetPath: ours,
    format: "raw",
    force: true,
    sync: false,
  });
  expect(hasBytes(ours, content)).toBe(true);
  const [disk] = point.disks;
  if (disk?.format !== "qcow2") return;
  const image = join(repository.pointFolder(DOMAIN, point.id), disk.file);
  const theirs = join(base, "theirs.raw");
  await promisify(execFile)("qemu-img", ["check", "-q", image]);
  await promisify(execFile)("qemu-img", ["convert", "-O", "raw", image, theirs]);
  const stock = await readFile(theirs);
  expect(stock.subarray(0, content.length).equals(content)).toBe(true);
  expect(stock.subarray(content.length).every((byte) => byte === 0)).toBe(true);
}
