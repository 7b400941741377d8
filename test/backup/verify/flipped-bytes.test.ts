import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { inflateRawSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DamageError } from "../../../src/backup/base/errors.js";
import { ALL_SUBCLUSTERS, clustersIn, maskStretches } from "../../../src/backup/image/image.js";
import { RawReader } from "../../../src/backup/image/raw-reader.js";
import { decodeL1Entry, decodeL2Entry, l2EntryBytes } from "../../../src/backup/qcow2/format.js";
import { INCOMPATIBLE } from "../../../src/backup/qcow2/header.js";
import { Qcow2File } from "../../../src/backup/qcow2/open.js";
import { type Manifest, parseManifest } from "../../../src/backup/repository/manifest.js";
import { verifyPoints } from "../../../src/backup/verify/verify.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { seededRuns } from "../../support/property-runs.js";
import { restoreDisk } from "../../support/restore-disk.js";

const KiB = 1024;
const CLUSTER = 64 * KiB;
const SIZE = 24 * CLUSTER + 5 * 512;
/** Flips per kind of content in a file. */
const { runs: FLIPS, seed: SEED, random } = seededRuns(1);

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

interface Kind {
  readonly format: "qcow2" | "raw";
  readonly compress?: "deflate";
  readonly digests: "xxh64" | "sha256";
  readonly granularity: number;
}

/** Data that neither repeats nor resists compression. */
function text(length: number, seed: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, i) => 97 + ((i * seed + (i >> 7)) % 23)));
}

async function twoPoints({ granularity, ...options }: Kind): Promise<void> {
  chain.disk.write(0, text(9 * CLUSTER, 3));
  chain.disk.write(20 * CLUSTER, text(SIZE - 20 * CLUSTER, 5));
  await chain.take({ ...options, granularity });
  chain.disk.write(2 * CLUSTER + 512, text(512, 7));
  chain.disk.write(4 * CLUSTER, text(2 * CLUSTER, 9));
  chain.disk.writeZeroes(7 * CLUSTER, 3 * CLUSTER + 4096);
  chain.disk.write(SIZE - 512, text(512, 11));
  await chain.take({ ...options, granularity });
}

interface Stretch {
  readonly what: string;
  readonly start: number;
  readonly end: number;
}

/** The parts of a qcow2 image that mean anything, by the format's specification. */
async function usedInQcow2(path: string): Promise<Stretch[]> {
  await using file = Object.assign(await Qcow2File.open(path), {
    async [Symbol.asyncDispose](this: Qcow2File) {
      await this.close();
    },
  });
  const { header, context, l2Entries } = file;
  const { clusterSize, virtualSize } = header;
  const used: Stretch[] = [{ what: "the header", start: 0, end: clusterSize }];
  const add = (what: string, start: number, length: number): void => {
    used.push({ what, start, end: start + length });
  };
  const extended = (header.incompatible & INCOMPATIBLE.EXTENDED_L2) !== 0;
  const clusters = clustersIn({ virtualSize, clusterSize });
  add("the L1 table", header.l1Offset, header.l1Entries * 8);
  const l1 = await file.readTable(header.l1Offset, header.l1Entries * 8);
  for (let index = 0; index < header.l1Entries; index += 1) {
    const entry = decodeL1Entry(l1, index, context);
    if (entry.kind !== "table") continue;
    const count = Math.min(l2Entries, clusters - index * l2Entries);
    add("an L2 table", entry.hostOffset, count * l2EntryBytes(extended));
    const table = await file.readTable(entry.hostOffset, clusterSize);
    for (let i = 0; i < count; i += 1) {
      const found = decodeL2Entry(table, i, context);
      if (found.kind === "compressed") {
        const stream = await file.readTable(found.hostOffset, found.length);
        // The last byte of a stream may have unused bits.
        add("a stream", found.hostOffset, consumed(stream) - 1);
      } else if (found.kind === "standard") {
        const inside = virtualSize - (index * l2Entries + i) * clusterSize;
        for (const { offset, length } of maskStretches(found.dataMask, clusterSize)) {
          if (offset < inside) add("data", found.hostOffset + offset, Math.min(length, inside - offset));
        }
      }
    }
  }
  const fileClusters = Math.ceil((await stat(path)).size / clusterSize);
  add("the refcount table", header.refcountTableOffset, 8);
  const block = await file.readTable(header.refcountTableOffset, 8);
  add("a refcount block", Number(block.readBigUInt64BE()), fileClusters * 2);
  return used;
}

function consumed(stream: Buffer): number {
  const { engine } = inflateRawSync(stream, { info: true }) as unknown as {
    engine: { bytesWritten: number };
  };
  return engine.bytesWritten;
}

async function usedInRaw(path: string, point: Manifest): Promise<Stretch[]> {
  const [disk] = point.disks;
  if (!disk?.map) return [{ what: "the disk", start: 0, end: SIZE }];
  const { clusterSize } = disk;
  const geometry = { virtualSize: SIZE, clusterSize };
  await using image = await RawReader.open(path, { geometry, mapPath: chain.pathOf(point, disk.map.file) });
  const used: Stretch[] = [];
  for await (const run of image.runs()) {
    const mask = run.kind === "partial" ? run.dataMask : ALL_SUBCLUSTERS;
    for (let i = 0; i < run.count; i += 1) {
      for (const { offset, length } of maskStretches(mask, clusterSize)) {
        const start = (run.cluster + i) * clusterSize + offset;
        used.push({ what: run.kind, start, end: Math.min(start + length, SIZE) });
      }
    }
  }
  return used;
}

/**
 * A manifest without what only people read, and without the checkpoint, which decides what can be based on
 * the point.
 */
function meaningOf(manifest: string): unknown {
  const { checkpoint: _c, createdAt: _a, tool: _t, domain: _d, disks, ...rest } = parseManifest(manifest, "");
  return {
    ...rest,
    disks: disks.map(
      ({
        reason: _r,
        exportName: _e,
        bitmap: _b,
        dirtyBytes: _1,
        dataBytes: _2,
        zeroBytes: _3,
        storedBytes: _4,
        ...disk
      }) => disk,
    ),
  };
}

/** Positions all over a file: some in each stretch that means something, and as many anywhere. */
function* places(used: readonly Stretch[], length: number): Generator<number> {
  const kinds = [...new Set(used.map(({ what }) => what))].map((kind) =>
    used.filter(({ what }) => what === kind),
  );
  const below = (limit: number): number => Math.floor(random() * limit);
  for (const stretches of [...kinds, [{ what: "anything", start: 0, end: length }]]) {
    for (let i = 0; i < FLIPS; i += 1) {
      const { start, end } = stretches[below(stretches.length)] as Stretch;
      yield [start, end - 1, start + below(end - start)][below(3)] as number;
    }
  }
}

async function restored(point: Manifest): Promise<Buffer> {
  const { repository, folder } = chain;
  const targetPath = join(folder, "restored.raw");
  const options = { targetPath, format: "raw", force: true, sync: false } as const;
  // A domain is known by its folder, even if its name in the manifest was flipped.
  await restoreDisk({ repository, domain: MemoryChain.domain, point, diskName: "vda", ...options });
  return await readFile(targetPath);
}

/** A restore returns what was backed up, or reports that it can't. */
async function expectNothingWrong({ id }: Manifest): Promise<"restored" | "damage"> {
  try {
    const point = await chain.repository.point(MemoryChain.domain, id);
    const content = Buffer.from((await chain.contents.get(id)?.read(0, SIZE)) ?? []);
    expect((await restored(point)).equals(content)).toBe(true);
    return "restored";
  } catch (error) {
    if (error instanceof DamageError) return "damage";
    throw error;
  }
}

/** The verdict of verify on the repository: a point's manifest may harm the points that are based on it. */
async function verdict(): Promise<"damage" | "leak" | "nothing"> {
  const ids = chain.points.map(({ id }) => id);
  const reports = await verifyPoints(chain.repository, MemoryChain.domain, ids);
  const severities = reports.flatMap(({ findings }) => findings.map(({ severity }) => severity));
  if (severities.includes("damage")) return "damage";
  return severities.includes("leak") ? "leak" : "nothing";
}

async function flipAll(
  point: Manifest,
  name: string,
  used: readonly Stretch[],
  isHarmless: (before: Buffer, after: Buffer, stretch: Stretch) => boolean | Promise<boolean>,
): Promise<void> {
  const path = chain.pathOf(point, name);
  const before = await readFile(path);
  for (const place of places(used, before.length)) {
    const after = Buffer.from(before);
    const flip = 1 << Math.floor(random() * 8);
    after.writeUInt8(after.readUInt8(place) ^ flip, place);
    await writeFile(path, after);
    const stretch = used.find(({ start, end }) => start <= place && place < end);
    try {
      await expectFound(before, after, stretch, isHarmless);
    } catch (cause) {
      const which = `${point.disks[0]?.mode} ${name}: bit ${flip} of byte ${place} (${stretch?.what ?? "nothing"})`;
      throw new Error(`${which}, PROPERTY_SEED=${SEED}: ${cause instanceof Error ? cause.stack : cause}`, {
        cause,
      });
    }
  }
  await writeFile(path, before);
}

async function expectFound(
  before: Buffer,
  after: Buffer,
  stretch: Stretch | undefined,
  isHarmless: Parameters<typeof flipAll>[3],
): Promise<void> {
  const taken = await verdict();
  if (taken === "damage") {
    // The newest point is based on all others.
    await expectNothingWrong(chain.points.at(-1) as Manifest);
    return;
  }
  for (const point of chain.points) expect(await expectNothingWrong(point)).toBe("restored");
  if (taken === "leak") expect(stretch?.what).toBe("a refcount block");
  else if (stretch) expect(await isHarmless(before, after, stretch)).toBe(true);
}

const never = (): boolean => false;

/**
 * The entry of a compressed cluster may count sectors that its stream doesn't need: a reader stops at the end
 * of the stream. Only the bytes of such entries may differ.
 */
async function isSectorCount(
  path: string,
  { start, end }: Stretch,
  before: Buffer,
  after: Buffer,
): Promise<boolean> {
  const file = await Qcow2File.open(path);
  await file.close();
  const entryBytes = l2EntryBytes((file.header.incompatible & INCOMPATIBLE.EXTENDED_L2) !== 0);
  for (let i = 0; i < (end - start) / entryBytes; i += 1) {
    const [was, is] = [before, after].map((bytes) =>
      decodeL2Entry(bytes.subarray(start, end), i, file.context),
    );
    if (JSON.stringify(was) === JSON.stringify(is)) continue;
    if (was?.kind !== "compressed" || is?.kind !== "compressed") return false;
    if (was.hostOffset !== is.hostOffset || is.length < was.length) return false;
  }
  return true;
}

describe("a single flipped bit in any file of a point", () => {
  it.each<Kind>([
    { format: "qcow2", digests: "xxh64", granularity: 64 * KiB },
    { format: "qcow2", digests: "sha256", granularity: 512 },
    { format: "qcow2", digests: "xxh64", granularity: 512, compress: "deflate" },
    { format: "raw", digests: "xxh64", granularity: 64 * KiB },
    { format: "raw", digests: "sha256", granularity: 512 },
  ])(
    "is found by verify, or lies in unused space: $format $compress $digests $granularity",
    async (kind) => {
      await twoPoints(kind);
      for (const point of chain.points) {
        expect(await verdict()).toBe("nothing");
        const [disk] = point.disks;
        if (!disk?.digests) throw new Error("no digests");
        const path = chain.pathOf(point, disk.file);
        const used = disk.format === "raw" ? await usedInRaw(path, point) : await usedInQcow2(path);
        await flipAll(point, disk.file, used, (before, after, stretch) => {
          // Different streams can encode the same bytes: unused codes, other copies of a string.
          if (stretch.what === "a stream") return true;
          return stretch.what === "an L2 table" && isSectorCount(path, stretch, before, after);
        });
        const wholly = async (name: string): Promise<Stretch[]> => [
          { what: name, start: 0, end: (await stat(chain.pathOf(point, name))).size },
        ];
        await flipAll(point, disk.digests.file, await wholly(disk.digests.file), never);
        if (disk.map) await flipAll(point, disk.map.file, await wholly(disk.map.file), never);
        await flipAll(point, "point.json", await wholly("point.json"), (before, after) => {
          expect(meaningOf(after.toString())).toEqual(meaningOf(before.toString()));
          return true;
        });
      }
    },
    180_000 * FLIPS,
  );
});
