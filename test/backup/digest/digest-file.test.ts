import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { DamageError } from "../../../src/backup/base/errors.js";
import { createDigester, digestClusters } from "../../../src/backup/digest/digest.js";
import type { DigestRun } from "../../../src/backup/digest/digest-file.js";
import { DigestFileReader } from "../../../src/backup/digest/digest-file-reader.js";
import { DigestFileWriter } from "../../../src/backup/digest/digest-file-writer.js";
import { collect } from "../../support/collect.js";

const geometry = { virtualSize: 100 * 65536 - 1000, clusterSize: 65536 };
const header = { algorithm: "xxh64", geometry, complete: false } as const;
let folder: string;
let count = 0;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-test-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

const digests = (n: number, fill: number): Buffer => Buffer.alloc(n * 8, fill);

async function written(...runs: DigestRun[]): Promise<{ path: string; sha256: string }> {
  const path = join(folder, `${count++}.digests`);
  const writer = await DigestFileWriter.create(path, header);
  for (const run of runs) {
    if (run.kind === "zero") writer.add(run, Buffer.alloc(0));
    else writer.add(run, run.digests);
  }
  const { sha256 } = await writer.finish({ sync: false });
  await writer.close();
  return { path, sha256 };
}

async function readBack(path: string, sha256?: string): Promise<DigestRun[]> {
  const reader = await DigestFileReader.open(path);
  try {
    return (await collect(reader.runs(sha256))).map(({ digestsAt: _, ...run }) => run as DigestRun);
  } finally {
    await reader.close();
  }
}

describe("the digest file", () => {
  it("is read without its digests too, which are then read one by one", async () => {
    const runs: DigestRun[] = [
      { kind: "data", cluster: 0, count: 50, digests: Buffer.from(Array.from({ length: 400 }, (_, i) => i)) },
      { kind: "partial", cluster: 50, count: 1, dataMask: 1, zeroMask: 2, digests: digests(1, 3) },
      { kind: "zero", cluster: 60, count: 3 },
      { kind: "data", cluster: 70, count: 2, digests: digests(2, 9) },
    ];
    const { path } = await written(...runs);
    const reader = await DigestFileReader.open(path);
    try {
      const heads = await collect(reader.heads());
      expect(heads.map(({ kind, cluster, count }) => ({ kind, cluster, count }))).toEqual(
        runs.map(({ kind, cluster, count }) => ({ kind, cluster, count })),
      );
      for (const [i, { kind, count, digestsAt }] of heads.entries()) {
        const run = runs[i];
        if (kind === "zero" || run === undefined || run.kind === "zero") continue;
        expect(await reader.digestsAt(digestsAt, count)).toEqual(run.digests);
      }
    } finally {
      await reader.close();
    }
  });

  it("is read beyond digests that are larger than a block, and refused where it ends early", async () => {
    const many: DigestRun = { kind: "data", cluster: 0, count: 100, digests: digests(100, 1) };
    const { path } = await written(many);
    const bytes = await readFile(path);
    // Ends inside the digests.
    const cut = join(folder, "cut.digests");
    await writeFile(cut, bytes.subarray(0, 64 + 16 + 400));
    const reader = await DigestFileReader.open(cut);
    await expect(collect(reader.heads())).rejects.toThrow("it ends before its last record");
    await reader.close();
  });

  it("returns what was written, with neighbouring data joined", async () => {
    const { path, sha256 } = await written(
      { kind: "data", cluster: 0, count: 2, digests: digests(2, 1) },
      { kind: "data", cluster: 2, count: 1, digests: digests(1, 2) },
      { kind: "zero", cluster: 5, count: 40 },
      { kind: "partial", cluster: 50, count: 1, dataMask: 0x80000001, zeroMask: 2, digests: digests(1, 3) },
      { kind: "partial", cluster: 51, count: 1, dataMask: 0, zeroMask: 4, digests: Buffer.alloc(0) },
    );
    expect(await readBack(path, sha256)).toEqual([
      { kind: "data", cluster: 0, count: 3, digests: Buffer.concat([digests(2, 1), digests(1, 2)]) },
      { kind: "zero", cluster: 5, count: 40 },
      { kind: "partial", cluster: 50, count: 1, dataMask: 0x80000001, zeroMask: 2, digests: digests(1, 3) },
      { kind: "partial", cluster: 51, count: 1, dataMask: 0, zeroMask: 4, digests: Buffer.alloc(0) },
    ]);
  });

  it("divides a run that is longer than a record may be", async () => {
    const path = join(folder, "long.digests");
    const clusters = 150_000;
    const all = Buffer.alloc(clusters * 8);
    for (let i = 0; i < clusters; i += 1) all.writeUInt32BE(i, i * 8);
    const large = { virtualSize: clusters * 512, clusterSize: 512 };
    const writer = await DigestFileWriter.create(path, { ...header, geometry: large });
    writer.add({ kind: "data", cluster: 0, count: clusters }, all);
    const { sha256 } = await writer.finish({ sync: false });
    await writer.close();
    const runs = await readBack(path, sha256);
    expect(runs.map(({ cluster, count }) => [cluster, count])).toEqual([
      [0, 65_536],
      [65_536, 65_536],
      [131_072, 18_928],
    ]);
    const read = Buffer.concat(runs.flatMap((run) => ("digests" in run ? [run.digests] : [])));
    // `toEqual` compares byte by byte, for seconds.
    expect(read.equals(all)).toBe(true);
  });

  it("detects every flipped bit", async () => {
    const { path, sha256 } = await written(
      { kind: "data", cluster: 1, count: 3, digests: digests(3, 9) },
      { kind: "zero", cluster: 9, count: 2 },
    );
    const bytes = await readFile(path);
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length * 8 - 1), async (bit) => {
        const flipped = Buffer.from(bytes);
        flipped.writeUInt8(flipped.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
        const damaged = join(folder, `flipped-${bit}`);
        await writeFile(damaged, flipped);
        await expect(readBack(damaged, sha256)).rejects.toBeInstanceOf(DamageError);
      }),
      { numRuns: 200 },
    );
  });

  it("detects truncation anywhere, and trailing bytes", async () => {
    const { path } = await written({ kind: "data", cluster: 1, count: 3, digests: digests(3, 9) });
    const bytes = await readFile(path);
    for (let length = 0; length < bytes.length; length += 1) {
      await writeFile(join(folder, "cut"), bytes.subarray(0, length));
      await expect(readBack(join(folder, "cut"))).rejects.toBeInstanceOf(DamageError);
    }
    await writeFile(join(folder, "longer"), Buffer.concat([bytes, Buffer.alloc(1)]));
    await expect(readBack(join(folder, "longer"))).rejects.toThrow(/bytes follow/);
  });

  it("reports an error of the file system", async () => {
    const path = join(folder, "missing", "vda.digests");
    await expect(DigestFileWriter.create(path, header)).rejects.toMatchObject({ code: "ENOENT" });
  });
});

describe("digests of clusters", () => {
  it("match the published algorithms", async () => {
    const out = Buffer.alloc(32);
    (await createDigester("xxh64")).digestInto(Buffer.from(""), out, 0);
    expect(out.toString("hex", 0, 8)).toBe("ef46db3751d8e999");
    (await createDigester("sha256")).digestInto(Buffer.from("abc"), out, 0);
    expect(out.toString("hex")).toBe("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  });

  it("cover the last cluster only up to the end of the disk", async () => {
    const digester = await createDigester("xxh64");
    const run = { kind: "data", cluster: 99, count: 1 } as const;
    const slot = Buffer.alloc(65536, 7);
    const before = digestClusters(digester, run, slot, geometry);
    slot.fill(8, 65536 - 1000);
    expect(digestClusters(digester, run, slot, geometry)).toEqual(before);
    slot[65536 - 1001] = 8;
    expect(digestClusters(digester, run, slot, geometry)).not.toEqual(before);
  });

  it("cover only the data subclusters of a partial cluster", async () => {
    const digester = await createDigester("xxh64");
    const run = { kind: "partial", cluster: 0, count: 1, dataMask: 0b110 } as const;
    const slot = Buffer.alloc(65536, 7);
    const before = digestClusters(digester, run, slot, geometry);
    slot.fill(8, 0, 2048);
    slot.fill(8, 3 * 2048);
    expect(digestClusters(digester, run, slot, geometry)).toEqual(before);
    slot[2 * 2048] = 8;
    expect(digestClusters(digester, run, slot, geometry)).not.toEqual(before);
  });
});
