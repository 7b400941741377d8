import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as zlib from "node:zlib";
import { execa } from "execa";
import fc from "fast-check";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { ImageFormat } from "../../src/backup/image/image.js";
import type { CompressionMethod } from "../../src/backup/qcow2/can-compress.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { takePoint } from "../../src/backup/take/take-point.js";
import { verifyPoints } from "../../src/backup/verify/verify.js";
import { NbdServer, parseNbdUri } from "../../src/nbd/index.js";
import { ByteDisk } from "../support/byte-disk.js";
import { propertyRuns } from "../support/property-runs.js";
import { restoreDisk } from "../support/restore-disk.js";
import { hasBytes } from "../support/same-bytes.js";
import { describeWith } from "../support/tools.js";

const SECTOR = 512;
const MAX_SECTORS = 9000;
const DOMAIN = "chains";
const DISK = "vda";

/** The steps of a story. A kind of step has a member here, an arbitrary below, and a method of `Story`. */
type Step =
  | { readonly kind: "write"; readonly at: number; readonly sectors: number; readonly fill: number | "noise" }
  | { readonly kind: "zero" | "discard"; readonly at: number; readonly sectors: number }
  | { readonly kind: "resize"; readonly sectors: number }
  | {
      readonly kind: "take";
      readonly full: boolean;
      /** The wanted format; an increment on a raw one is always raw. */
      readonly format: ImageFormat;
      /** Applies if the format allows it. */
      readonly compress: CompressionMethod | undefined;
      readonly refusesClean: boolean;
      /** Of the bitmap that begins with the point. */
      readonly granularity: number;
    };

const METHODS: readonly CompressionMethod[] =
  "createZstdCompress" in zlib ? ["deflate", "zstd"] : ["deflate"];
const GRANULARITIES = [512, 1024, 4096, 32_768, 65_536, 131_072, 2_097_152];

/** Taken modulo the size of the disk. */
const at = fc.nat(MAX_SECTORS);
const length = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 1, max: 20 }) },
  { weight: 1, arbitrary: fc.integer({ min: 21, max: 2000 }) },
);
const size = fc.oneof(
  { weight: 2, arbitrary: fc.integer({ min: 1, max: 150 }) },
  { weight: 3, arbitrary: fc.integer({ min: 1, max: MAX_SECTORS }) },
);
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant("write"),
      at,
      sectors: length,
      fill: fc.oneof(fc.nat(255), fc.constant("noise" as const)),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constantFrom("zero", "discard"), at, sectors: length }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("resize"), sectors: size }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("take"),
      full: fc.oneof(
        { weight: 6, arbitrary: fc.constant(false) },
        { weight: 1, arbitrary: fc.constant(true) },
      ),
      format: fc.constantFrom<ImageFormat>("qcow2", "qcow2", "raw"),
      compress: fc.constantFrom(undefined, ...METHODS),
      refusesClean: fc.boolean(),
      granularity: fc.constantFrom(...GRANULARITIES),
    }),
  },
);

const story = fc.record({
  sectors: size,
  /** Bytes after the last whole sector; after a resize there are none. */
  tail: fc.constantFrom(0, 0, 1, 65),
  steps: fc.array(step, { minLength: 8, maxLength: 26 }),
});

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-chains-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

describeWith(["qemu-img"], "a chain of points", () => {
  it("restores every point byte for byte, whatever was written and resized between them", async () => {
    let run = 0;
    await fc.assert(
      fc.asyncProperty(story, async ({ sectors, tail, steps }) => {
        const base = join(folder, String(run++));
        await using told = await Story.begin(base, sectors * SECTOR + tail);
        for (const each of steps) {
          await told.perform(each);
          if (each.kind === "take") await told.expectAllPoints();
        }
        await told.expectAllStockPoints();
      }),
      propertyRuns(15),
    );
  }, 480_000);
});

class Story implements AsyncDisposable {
  readonly #base: string;
  readonly #repository: Repository;
  readonly #server: NbdServer;
  readonly #guest: ByteDisk;
  #shown: ReturnType<ByteDisk["freeze"]>;
  /** The expected content of each point. The manifests come from the repository. */
  readonly #contents = new Map<string, Buffer>();
  #newest: Manifest | undefined;
  #writes = 0;

  private constructor(base: string, repository: Repository, guest: ByteDisk, server: NbdServer) {
    this.#base = base;
    this.#repository = repository;
    this.#guest = guest;
    this.#server = server;
    this.#shown = guest.freeze({ refusesClean: false });
  }

  static async begin(base: string, size: number): Promise<Story> {
    const repository = await Repository.openOrCreate(join(base, "repo"));
    let story: Story;
    const server = await NbdServer.listen({
      exports: () => story.#shown,
      address: { path: join(base, "nbd.sock") },
    });
    story = new Story(base, repository, new ByteDisk(size), server);
    return story;
  }

  async perform(step: Step): Promise<void> {
    switch (step.kind) {
      case "write": {
        const { offset, length } = this.#place(step);
        const noise = (): Buffer => noiseOf(this.#writes++, length);
        this.#guest.write(offset, step.fill === "noise" ? noise() : Buffer.alloc(length, step.fill));
        return;
      }
      case "zero": {
        const { offset, length } = this.#place(step);
        this.#guest.writeZeroes(offset, length);
        return;
      }
      case "discard": {
        const { offset, length } = this.#place(step);
        this.#guest.discard(offset, length);
        return;
      }
      case "resize":
        this.#guest.resize(step.sectors * SECTOR);
        return;
      case "take":
        await this.#take(step);
        return;
      default:
        step satisfies never;
    }
  }

  /** Checks all points so far with our own tools, and the newest one with stock QEMU too. */
  async expectAllPoints(): Promise<void> {
    expect(await this.#repository.pointIds(DOMAIN)).toEqual([...this.#contents.keys()]);
    for (const id of this.#contents.keys()) await this.#expectRestored(id);
    const reports = await verifyPoints(this.#repository, DOMAIN, [...this.#contents.keys()]);
    expect(reports.flatMap(({ findings }) => findings)).toEqual([]);
    if (this.#newest) await this.#expectStockRestore(this.#newest.id);
  }

  async expectAllStockPoints(): Promise<void> {
    for (const id of this.#contents.keys()) await this.#expectStockRestore(id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
    await rm(this.#base, { recursive: true });
  }

  /** A range on the current disk. */
  #place({ at, sectors }: { readonly at: number; readonly sectors: number }): {
    offset: number;
    length: number;
  } {
    const { length: size } = this.#guest.content;
    const offset = (at % Math.ceil(size / SECTOR)) * SECTOR;
    return { offset, length: Math.min(sectors * SECTOR, size - offset) };
  }

  async #take({ full, format, compress, refusesClean, granularity }: Step & { kind: "take" }): Promise<void> {
    const parent = full ? undefined : this.#newest;
    const wanted = isRawIncrement(parent) ? "raw" : format;
    this.#shown = this.#guest.freeze({ refusesClean: refusesClean && parent !== undefined });
    const increment = parent && { bitmap: ByteDisk.bitmap, parent };
    const { manifest } = await takePoint({
      repository: this.#repository,
      domain: { name: DOMAIN, uuid: null },
      disks: [{ name: DISK, address: parseNbdUri(this.#server.uri(DISK)), increment }],
      checkpoint: null,
      format: wanted,
      compress: wanted === "qcow2" ? compress : undefined,
      digests: "xxh64",
      sync: false,
      tool: "test",
      connect: {},
      confirm: async () => undefined,
    });
    const [disk] = manifest.disks;
    const { length } = this.#guest.content;
    expect(disk).toMatchObject({ virtualSize: length, mode: parent ? "incremental" : "full" });
    expect((disk?.dataBytes ?? 0) + (disk?.zeroBytes ?? 0)).toBe(disk?.dirtyBytes);
    const parentSize = parent?.disks[0]?.virtualSize ?? 0;
    // Where a disk has grown, data counts as dirty and zeroes don't.
    if (parent && parentSize >= length) expect(disk?.dirtyBytes).toBe(this.#guest.dirtyBytes);
    if (!parent) expect(disk?.dirtyBytes).toBe(length);
    this.#contents.set(manifest.id, Buffer.from(this.#guest.content));
    this.#newest = manifest;
    this.#guest.startBitmap(granularity);
  }

  async #expectRestored(id: string): Promise<void> {
    const repository = this.#repository;
    const point = await repository.point(DOMAIN, id);
    const targetPath = join(this.#base, "ours.raw");
    await restoreDisk({
      repository,
      point,
      diskName: DISK,
      targetPath,
      format: "raw",
      force: true,
      sync: false,
    });
    expect(hasBytes(targetPath, this.#contentOf(id)), `restored ${id}`).toBe(true);
  }

  /** What a user can do with only the folder and QEMU. A qcow2 disk has whole sectors, padded with zeroes. */
  async #expectStockRestore(id: string): Promise<void> {
    const [disk] = (await this.#repository.point(DOMAIN, id)).disks;
    if (disk?.format !== "qcow2") return;
    const image = join(this.#repository.pointFolder(DOMAIN, id), disk.file);
    const target = join(this.#base, "theirs.raw");
    await execa("qemu-img", ["check", "-q", "-f", "qcow2", image]);
    await execa("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", image, target]);
    const theirs = await readFile(target);
    const { length } = this.#contentOf(id);
    expect(theirs.subarray(0, length).equals(this.#contentOf(id)), `converted ${id}`).toBe(true);
    expect(theirs.subarray(length).every((byte) => byte === 0)).toBe(true);
  }

  #contentOf(id: string): Buffer {
    const content = this.#contents.get(id);
    if (!content) throw new Error(`there was no point ${id}`);
    return content;
  }
}

/** Stock QEMU would read the clean areas of a raw increment as zeroes, so no qcow2 image is based on one. */
function isRawIncrement(point: Manifest | undefined): boolean {
  return point?.disks.some(({ format, mode }) => format === "raw" && mode === "incremental") ?? false;
}

/** Incompressible bytes, always the same ones for a seed. */
function noiseOf(seed: number, length: number): Buffer {
  return createHash("shake256", { outputLength: length }).update(String(seed)).digest();
}
