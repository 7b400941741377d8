import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { findChain, openChain } from "../../../src/backup/chain/chain.js";
import { ChainSource } from "../../../src/backup/chain/chain-source.js";
import { RateLimit } from "../../../src/backup/pull/rate-limit.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import { collect } from "../../support/collect.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { nbdpull } from "../../support/nbdpull.js";
import { restoreDisk } from "../../support/restore-disk.js";

const CLUSTER = 64 * 1024;
const SIZE = 61 * CLUSTER + 577;

let chain: MemoryChain;
let expected: Buffer;
let newest: Manifest;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  // Every cluster has different content, so that none can pass for another.
  const content = Buffer.alloc(SIZE);
  for (let at = 0; at < SIZE; at += 512) content.writeUInt16BE(1 + at / 512, at);
  chain.disk.write(0, content);
  await chain.take();
  for (let cluster = 1; cluster < 60; cluster += 3)
    chain.disk.write(cluster * CLUSTER, content.subarray(0, 700));
  chain.disk.writeZeroes(20 * CLUSTER, 2 * CLUSTER);
  newest = (await chain.take()).manifest;
  expected = Buffer.from(chain.disk.read(0, SIZE));
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

/** Delays every other piece, so that the next one overtakes it. */
class Overtaking extends RateLimit {
  #turn = 0;

  override async take(): Promise<void> {
    this.#turn += 1;
    if (this.#turn % 2 === 1) await sleep(3);
  }
}

describe("a restore", () => {
  it("is exact when pieces overtake each other", async () => {
    const targetPath = join(chain.folder, "overtaken.raw");
    await restoreDisk({
      repository: chain.repository,
      point: newest,
      diskName: "vda",
      targetPath,
      format: "raw",
      force: false,
      sync: false,
      window: { requestSize: CLUSTER, inFlight: 16 * CLUSTER },
      rateLimit: new Overtaking(1),
    });
    expect((await readFile(targetPath)).equals(expected)).toBe(true);
  });

  it("is exact with --limit-rate and --request-size", async () => {
    const target = join(chain.folder, "limited.raw");
    const sizes = ["--limit-rate", "8M", "--request-size", "64K", "--in-flight", "1M"];
    const ran = await nbdpull("restore", chain.repository.path, "--disk", "vda", "--to", target, ...sizes);
    expect([ran.code, ran.stderr]).toEqual([0, ""]);
    expect((await readFile(target)).equals(expected)).toBe(true);
    expect((await readdir(chain.folder)).filter((name) => name.startsWith("."))).toEqual([]);
  });
});

describe("a chain as a source of bytes", () => {
  async function opened(): Promise<{ source: ChainSource } & AsyncDisposable> {
    const layers = await openChain(
      chain.repository,
      MemoryChain.domain,
      await findChain(chain.repository, MemoryChain.domain, newest, "vda"),
    );
    const fail = () => (): never => {
      throw new Error("damage");
    };
    const source = new ChainSource(layers, { virtualSize: SIZE, clusterSize: CLUSTER }, fail);
    return {
      source,
      [Symbol.asyncDispose]: async () => {
        for (const layer of layers) await layer.close();
      },
    };
  }

  /** 40,000 bytes at a time: pieces end inside clusters. */
  const PIECE = 40_000;
  const offsets = Array.from({ length: Math.ceil(SIZE / PIECE) }, (_, i) => i * PIECE);

  it.each([
    ["backwards", (list: number[]) => list.reverse()],
    ["odd pieces first", (list: number[]) => list.sort((a, b) => ((b / PIECE) % 2) - ((a / PIECE) % 2))],
    ["the last piece first", (list: number[]) => [...list.slice(-1), ...list.slice(0, -1)]],
  ] as const)("reads the same bytes in any order: %s", async (_, order) => {
    await using chained = await opened();
    await collect(chained.source.extents());
    const found = Buffer.alloc(SIZE, 0xee);
    for (const offset of order([...offsets])) {
      await chained.source.read(offset, found.subarray(offset, Math.min(offset + PIECE, SIZE)));
    }
    expect(found.equals(expected)).toBe(true);
  });

  it("reads the same bytes when all reads run at once", async () => {
    await using chained = await opened();
    await collect(chained.source.extents());
    const found = Buffer.alloc(SIZE, 0xee);
    await Promise.all(
      [...offsets].reverse().map((offset) => {
        return chained.source.read(offset, found.subarray(offset, Math.min(offset + PIECE, SIZE)));
      }),
    );
    expect(found.equals(expected)).toBe(true);
  });

  it("reports data that was never read, and data that was read twice", async () => {
    await using chained = await opened();
    await collect(chained.source.extents());
    await chained.source.read(0, Buffer.alloc(CLUSTER));
    expect(() => chained.source.assertAllRead()).toThrow(/never read/);
    await expect(chained.source.read(0, Buffer.alloc(512))).rejects.toThrow();
    await chained.source.read(CLUSTER, Buffer.alloc(SIZE - CLUSTER));
    chained.source.assertAllRead();
  });
});
