import { open } from "node:fs/promises";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Layer } from "../../../src/backup/chain/layer.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import { ChainView } from "../../../src/backup/serve/chain-view.js";
import { DiskCache } from "../../../src/backup/serve/disk-cache.js";
import { PointView } from "../../../src/backup/serve/point-view.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { numbered } from "./numbered.js";

const KiB = 1024;
const CLUSTER = 64 * KiB;
const SIZE = 60 * CLUSTER + 577;
const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
});
afterEach(async () => {
  vi.restoreAllMocks();
  await chain[Symbol.asyncDispose]();
});

function viewOf(point: Manifest | undefined): Promise<ChainView> {
  if (!point) throw new Error("no such point");
  return ChainView.open(chain.repository, DOMAIN, point, "vda");
}

type Taking = NonNullable<Parameters<MemoryChain["take"]>[0]>;

/**
 * A full and three increments, with data, zeroes and discards in whole and partial clusters, and the ragged
 * end.
 */
async function fourPoints(options: Taking): Promise<void> {
  chain.disk.write(0, numbered(50 * CLUSTER));
  chain.disk.write(SIZE - 700, numbered(700));
  await chain.take(options);
  for (let cluster = 1; cluster < 40; cluster += 3)
    chain.disk.write(cluster * CLUSTER + 3000, numbered(700, 1));
  chain.disk.writeZeroes(20 * CLUSTER, 2 * CLUSTER);
  await chain.take(options);
  chain.disk.discard(0, CLUSTER);
  chain.disk.writeZeroes(22 * CLUSTER + 4096, 5 * 4096);
  chain.disk.write(45 * CLUSTER, numbered(10 * CLUSTER, 2));
  await chain.take({ ...options, granularity: 65_536 });
  chain.disk.write(SIZE - 512, numbered(512, 3));
  chain.disk.write(21 * CLUSTER - 100, numbered(200, 3));
  await chain.take(options);
}

function bytesAt(point: Manifest): Promise<Buffer> {
  return chain.contentOf(point.id);
}

const forms: [string, Taking][] = [
  ["qcow2", {}],
  ["qcow2 with subclusters", { granularity: 4096 }],
  ["compressed qcow2", { compress: "deflate" }],
  ["compressed qcow2 with subclusters", { compress: "deflate", granularity: 512 }],
  ["raw", { format: "raw", granularity: 4096 }],
  ["qcow2 without digests", { digests: undefined, granularity: 4096 }],
  ["raw without digests", { format: "raw", digests: undefined, granularity: 4096 }],
  ["qcow2 with SHA-256", { digests: "sha256", granularity: 4096 }],
];

describe("a view through a chain", () => {
  it.each(forms)("reads the bytes of every point at any offset, concurrently: %s", async (_, form) => {
    await fourPoints(form);
    for (const point of chain.points) {
      const expected = await bytesAt(point);
      await using view = await viewOf(point);
      expect(view.size).toBe(SIZE);
      expect((await view.read(0, SIZE)).equals(expected)).toBe(true);
      const places = fc.sample(
        fc.tuple(
          fc.nat(SIZE - 1),
          fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: SIZE })),
        ),
        { numRuns: 60, seed: 20_261_120 },
      );
      const wrong = await Promise.all(
        places.map(async ([offset, wanted]) => {
          const length = Math.min(wanted, SIZE - offset);
          const found = await view.read(offset, length);
          return found.equals(expected.subarray(offset, offset + length)) ? [] : [{ offset, length }];
        }),
      );
      expect(wrong.flat()).toEqual([]);
    }
  });

  it("reads from a disk of this machine what it has read before, and the chain for the rest", async () => {
    await fourPoints({ granularity: 4096 });
    const point = chain.points.at(-1);
    const expected = await bytesAt(point as Manifest);
    await using cache = await DiskCache.create(
      { folder: chain.folder, bytes: 100 * CLUSTER },
      CLUSTER,
      (error) => {
        throw error;
      },
    );
    await using view = await viewOf(point);
    expect(view.keepIn(cache, 7)).toBe(7 + 4 * 61);
    const reads = vi.spyOn(Layer.prototype, "read");
    const read = async (): Promise<boolean> => {
      for (let at = 0; at < SIZE; at += 7 * CLUSTER) {
        const found = await view.read(at, Math.min(7 * CLUSTER, SIZE - at));
        if (!found.equals(expected.subarray(at, at + found.length))) return false;
      }
      return true;
    };
    expect(await read()).toBe(true);
    const before = reads.mock.calls.length;
    expect(before).toBeGreaterThan(20);
    // What came while others were written was not kept.
    await expect
      .poll(async () => {
        reads.mockClear();
        expect(await read()).toBe(true);
        return reads.mock.calls.length;
      })
      .toBe(0);
  });

  it.each([forms[1], forms[3], forms[4]] as [string, Taking][])(
    "has what was fetched before, each cluster once, wherever that is said to be: %s",
    async (_, form) => {
      await fourPoints(form);
      const point = chain.points.at(-1) as Manifest;
      const expected = await bytesAt(point);
      const options = { repository: chain.repository, domain: DOMAIN, at: point.id };
      await using view = await PointView.open(options);
      const [disk] = view.disks;
      const reads = vi.spyOn(Layer.prototype, "read");
      const everything = [
        { disk: "none", reads: [{ offset: 0, length: SIZE }] },
        { disk: "vda", reads: [{ offset: 2 ** 50, length: CLUSTER }] },
        { disk: "vda", reads: [{ offset: 577, length: 3 }] },
        { disk: "vda", reads: [{ offset: 512, length: 2 * SIZE }] },
      ];
      const readAll = async (): Promise<number> => {
        reads.mockClear();
        for (let at = 0; at < SIZE; at += 7 * CLUSTER + 512) {
          const found = await disk?.read(at, Math.min(7 * CLUSTER + 512, SIZE - at));
          expect(found?.equals(expected.subarray(at, at + found.length))).toBe(true);
        }
        return reads.mock.calls.length;
      };
      await view.fetchAhead(everything, 2 * SIZE);
      expect(await readAll()).toBe(0);
      expect(await readAll()).toBeGreaterThan(0);
      reads.mockClear();
      await view.fetchAhead(everything, 3 * CLUSTER);
      expect(reads.mock.calls.length).toBeLessThanOrEqual(3);
      // While it is fetched, too.
      const fetched = view.fetchAhead(everything, 2 * SIZE);
      await readAll();
      await fetched;
      await readAll();
    },
  );

  it("fetches the rest where a cluster is damaged, which whoever asks for it is told", async () => {
    await fourPoints({ format: "raw" });
    const [first] = chain.points as [Manifest];
    await using file = await open(chain.pathOf(first, "vda.raw"), "r+");
    await file.write(Buffer.from("damaged"), 0, 7, 2 * CLUSTER + 600);
    await using view = await PointView.open({ repository: chain.repository, domain: DOMAIN, at: first.id });
    const one = (number: number) => ({ offset: number * CLUSTER, length: CLUSTER });
    await view.fetchAhead([{ disk: "vda", reads: [1, 2, 3].map(one) }], SIZE);
    const reads = vi.spyOn(Layer.prototype, "read");
    for (const number of [1, 3]) await view.disks[0]?.read(number * CLUSTER, 512);
    expect(reads).not.toHaveBeenCalled();
    await expect(view.disks[0]?.read(2 * CLUSTER, 512)).rejects.toMatchObject({
      details: { guestOffset: 2 * CLUSTER },
    });
  });

  it("reads of the chain only from the first missing cluster to the last one", async () => {
    await fourPoints({});
    const [first] = chain.points;
    await using cache = await DiskCache.create(
      { folder: chain.folder, bytes: 100 * CLUSTER },
      CLUSTER,
      (error) => {
        throw error;
      },
    );
    await using view = await viewOf(first);
    view.keepIn(cache, 0);
    const expected = await bytesAt(first as Manifest);
    const reads = vi.spyOn(Layer.prototype, "read");
    const read = async (from: number, count: number): Promise<unknown> => {
      reads.mockClear();
      const found = await view.read(from * CLUSTER, count * CLUSTER);
      expect(found.equals(expected.subarray(from * CLUSTER, (from + count) * CLUSTER))).toBe(true);
      return reads.mock.calls.map(([, offset, target]) => [offset / CLUSTER, target.length / CLUSTER]);
    };
    for (const [from, count] of [
      [0, 3],
      [6, 2],
      [12, 4],
    ] as const) {
      expect(await read(from, count)).toEqual([[from, count]]);
      await expect.poll(() => read(from, count)).toEqual([]);
    }
    expect(await read(0, 16)).toEqual([[3, 9]]);
    await expect.poll(() => read(0, 16)).toEqual([]);
  });

  it.each(forms)("reports no data as zeroes, and leaves no gap: %s", async (_, form) => {
    await fourPoints(form);
    for (const point of chain.points) {
      const expected = await bytesAt(point);
      await using view = await viewOf(point);
      for (const [from, length] of [
        [0, SIZE],
        [5000, 30 * CLUSTER],
        [SIZE - 1, 1],
      ] as const) {
        let at = from;
        for (const extent of view.extents(from, length)) {
          const bytes = expected.subarray(at, at + extent.length);
          if (extent.state === "zero") expect(bytes.equals(Buffer.alloc(bytes.length))).toBe(true);
          at += extent.length;
        }
        expect(at).toBe(from + length);
      }
    }
  });

  it("tells holes and zeroes of every layer from data", async () => {
    chain.disk.write(0, numbered(50 * CLUSTER));
    await chain.take();
    chain.disk.writeZeroes(5 * CLUSTER, 3 * CLUSTER);
    await chain.take();
    chain.disk.discard(20 * CLUSTER, 2 * CLUSTER);
    chain.disk.write(6 * CLUSTER, numbered(CLUSTER, 1));
    await chain.take();
    await using view = await viewOf(chain.points.at(-1));
    const zeroes: [from: number, to: number][] = [];
    let at = 0;
    for (const { length, state } of view.extents(0, SIZE)) {
      if (state === "zero") zeroes.push([at / CLUSTER, (at + length) / CLUSTER]);
      at += length;
    }
    expect(zeroes).toEqual([
      [5, 6],
      [7, 8],
      [20, 22],
      [50, SIZE / CLUSTER],
    ]);
  });

  it("keeps few pieces for a disk with few extents, however large they are", async () => {
    chain.disk.write(0, numbered(50 * CLUSTER));
    await chain.take();
    await using full = await viewOf(chain.points[0]);
    expect(full.pieces).toBeLessThanOrEqual(3);
    chain.disk.write(10 * CLUSTER, numbered(10 * CLUSTER, 1));
    await chain.take({ compress: "deflate" });
    await using increment = await viewOf(chain.points[1]);
    expect(increment.pieces).toBeLessThanOrEqual(5);
  });

  it.each([
    ["qcow2", {}],
    ["compressed qcow2", { compress: "deflate" }],
    ["raw", { format: "raw" }],
  ] as [string, Taking][])("fails only at the damaged cluster: %s", async (_, form) => {
    await fourPoints(form);
    const [first] = chain.points;
    if (!first) throw new Error("no point");
    const suffix = form.format ?? "qcow2";
    const path = chain.pathOf(first, `vda.${suffix}`);
    // A byte in a data cluster of the full copy, wherever it is stored.
    const position =
      form.format === "raw" ? 2 * CLUSTER + 600 : form.compress ? CLUSTER + 3000 : 3 * CLUSTER + 600;
    await using file = await open(path, "r+");
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, position);
    await file.write(Buffer.from([(byte[0] ?? 0) ^ 0x40]), 0, 1, position);
    const expected = await bytesAt(first);
    await using view = await viewOf(first);
    const bad: number[] = [];
    for (let cluster = 0; cluster < 60; cluster += 1) {
      const read = view.read(cluster * CLUSTER + 10, 100);
      const found = await read.catch((error: unknown) => {
        expect(error).toMatchObject({
          name: "DamageError",
          details: { point: first.id, disk: "vda", guestOffset: cluster * CLUSTER },
        });
        return undefined;
      });
      if (!found) bad.push(cluster);
      else
        expect(found.equals(expected.subarray(cluster * CLUSTER + 10, cluster * CLUSTER + 110))).toBe(true);
    }
    expect(bad).toHaveLength(1);
    // A second read of it fails too, alone and among others.
    const [cluster = 0] = bad;
    await expect(view.read(cluster * CLUSTER + 10, 100)).rejects.toMatchObject({ name: "DamageError" });
    await expect(view.read(0, SIZE)).rejects.toMatchObject({ details: { guestOffset: cluster * CLUSTER } });
  });

  it("reads and checks a cluster once for many small reads, even concurrent ones", async () => {
    await fourPoints({});
    await using view = await viewOf(chain.points[0]);
    const expected = await bytesAt(chain.points[0] as Manifest);
    const reads = vi.spyOn(Layer.prototype, "read");
    const small = async (offset: number): Promise<void> => {
      expect((await view.read(offset, 512)).equals(expected.subarray(offset, offset + 512))).toBe(true);
    };
    await Promise.all(Array.from({ length: 128 }, (_, i) => small(3 * CLUSTER + i * 512)));
    for (let i = 0; i < 128; i += 1) await small(4 * CLUSTER + i * 512);
    expect(reads).toHaveBeenCalledTimes(2);
  });

  it("leaves no listener on the signal of a long-lived connection", async () => {
    await fourPoints({});
    await using view = await viewOf(chain.points[0]);
    const derived = vi.spyOn(AbortSignal, "any");
    const { signal } = new AbortController();
    const listened = vi.spyOn(signal, "addEventListener");
    await view.read(CLUSTER - 300, 30 * CLUSTER, signal);
    await view.read(CLUSTER - 300, 600, signal);
    expect([derived.mock.calls, listened.mock.calls]).toEqual([[], []]);
    const gone = AbortSignal.abort(new Error("the client is gone"));
    await expect(view.read(CLUSTER - 300, 600, gone)).rejects.toThrow("the client is gone");
  });

  it("does not open if a table contradicts the digest file", async () => {
    await fourPoints({});
    const second = chain.points[1];
    if (!second) throw new Error("no point");
    await using file = await open(chain.pathOf(second, "vda.qcow2"), "r+");
    const bytes = await file.readFile();
    const zeroes = Buffer.from("00000000000000010000000000000001", "hex");
    const entry = bytes.indexOf(zeroes);
    expect(entry).toBeGreaterThan(0);
    await file.write(Buffer.alloc(8), 0, 8, entry);
    await expect(viewOf(chain.points.at(-1))).rejects.toMatchObject({
      name: "DamageError",
      details: { point: second.id, guestOffset: 20 * CLUSTER },
    });
  });

  it("reports the guest offset if a file has shrunk", async () => {
    await fourPoints({ format: "raw" });
    const [first] = chain.points;
    await using view = await viewOf(first);
    await using file = await open(chain.pathOf(first as Manifest, "vda.raw"), "r+");
    await file.truncate(40 * CLUSTER);
    await expect(view.read(45 * CLUSTER + 512, 512)).rejects.toMatchObject({
      name: "DamageError",
      code: "E_DAMAGED",
      message: expect.stringMatching(/disk vda of point .* guest offset/),
    });
    expect(
      (await view.read(CLUSTER, CLUSTER)).equals(
        (await bytesAt(first as Manifest)).subarray(CLUSTER, 2 * CLUSTER),
      ),
    ).toBe(true);
  });

  it("stops opening when aborted", async () => {
    await fourPoints({});
    const stop = AbortSignal.abort(new Error("enough"));
    const point = chain.points[3] as Manifest;
    await expect(ChainView.open(chain.repository, DOMAIN, point, "vda", stop)).rejects.toThrow("enough");
  });
});
