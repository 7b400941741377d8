import { copyFile, open, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { type Repaired, repaired } from "../support/repaired.js";

const CLUSTER = 64 * 1024;
const SIZE = 40 * CLUSTER + 512;

let chain: MemoryChain;
let ids: readonly string[];
/**
 * A full point, two increments, and another full one. The second increment's cluster 9 is in no other point.
 */
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(30 * CLUSTER, 0x11));
  chain.disk.write(SIZE - 512, Buffer.alloc(512, 0x12));
  await chain.take({ digests: "sha256" });
  chain.disk.write(3 * CLUSTER + 4096, Buffer.alloc(CLUSTER, 0x21));
  chain.disk.writeZeroes(7 * CLUSTER, 3 * CLUSTER);
  await chain.take({ digests: "sha256" });
  chain.disk.write(9 * CLUSTER, Buffer.alloc(CLUSTER, 0x31));
  await chain.take({ digests: "sha256" });
  chain.disk.write(9 * CLUSTER, Buffer.alloc(CLUSTER, 0x41));
  await chain.take({ digests: "sha256", full: true });
  ids = chain.points.map(({ id }) => id);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

async function flip(path: string, at: number, length = 1): Promise<void> {
  await using handle = await open(path, "r+");
  await handle.write(Buffer.alloc(length, 0xee), 0, length, at);
}

/**
 * Offset in the file of a cluster. Where the clusters before it are zeroes, it depends on how the disk was
 * read.
 */
async function placeOf(path: string, cluster: number): Promise<number> {
  const map = JSON.parse(await qemuImg("map", "--output=json", "-f", "qcow2", path)) as {
    start: number;
    length: number;
    offset?: number;
  }[];
  const at = cluster * CLUSTER;
  const extent = map.find(({ start, length }) => start <= at && at < start + length);
  if (extent?.offset === undefined) throw new Error(`cluster ${cluster} is not stored`);
  return extent.offset + at - extent.start;
}

function run(command: string, ...more: readonly string[]): Promise<Ran> {
  return nbdpull(command, chain.repository.path, ...more);
}

async function contentOf(point: number): Promise<Buffer> {
  return Buffer.from((await chain.contents.get(ids[point] ?? "")?.read(0, SIZE)) ?? []);
}

const repair = (code: number, ...more: readonly string[]): Promise<Repaired> =>
  repaired(code, chain.repository.path, ...more);

/** Offsets in the file of the first refcount block, of the end of the file, and of the refcount table. */
async function refcountsOf(path: string): Promise<{ block: number; end: number; table: number }> {
  const bytes = await readFile(path);
  const table = Number(bytes.readBigUInt64BE(48));
  return { block: Number(bytes.readBigUInt64BE(table)), end: bytes.length, table };
}

describe("nbdpull repair", () => {
  it("mends clusters of which another point has the content, and says which it can't mend", async () => {
    const before = await readFile(chain.file(0));
    // The clusters 1 and 2 of the full point, and cluster 9 of the second increment, its only one.
    await flip(chain.file(0), 2 * CLUSTER + 5, 2 * CLUSTER - 10);
    await flip(chain.file(2), CLUSTER + 5);
    const damaged = await readFile(chain.file(0));
    const dry = await repair(3, "--dry-run");
    expect(await readFile(chain.file(0))).toEqual(damaged);
    expect(dry.mended.map(({ point, guestOffset }) => [point, guestOffset])).toEqual([
      [ids[0], CLUSTER],
      [ids[0], 2 * CLUSTER],
    ]);
    const done = await repair(3);
    expect(done.mended).toEqual(dry.mended);
    expect(done.mended[0]?.from).toBe(`point ${ids[3]}`);
    expect(done.left).toMatchObject([{ point: ids[2], severity: "damage", guestOffset: 9 * CLUSTER }]);
    expect(done.unrestorable.map(({ id }) => id)).toEqual([ids[2]]);
    expect(await readFile(chain.file(0))).toEqual(before);
    const points = (await run("points", "--json")).json() as { restorable: boolean }[];
    expect(points.map(({ restorable }) => restorable)).toEqual([true, true, false, true]);
    expect((await run("repair")).stdout).toMatch(/0 places mended, 1 left damaged/);
  });

  it("mends a point in place that a guest runs on: what is wrong it could not have read", async () => {
    const before = await readFile(chain.file(0));
    await flip(chain.file(0), 2 * CLUSTER + 5);
    const note = chain.file(1, ".live.3b5ba9a8-40a1-4a4f-ae0f-5ff3d0e4a0f5.json");
    await writeFile(note, "{}");
    expect((await repair(0)).mended).toMatchObject([{ point: ids[0], guestOffset: CLUSTER }]);
    expect(await readFile(chain.file(0))).toEqual(before);
  });

  it("takes what no other point has from the disk as it is now, if its digest is right", async () => {
    const before = await readFile(chain.file(3));
    await flip(chain.file(3), await placeOf(chain.file(3), 9), 8);
    await flip(chain.file(2), CLUSTER + 5);
    const from = (uri: string): string[] => ["guest", "--from", `vda=${uri}`];
    const { mended, left } = await repair(3, ...from(chain.uri));
    expect(mended).toMatchObject([{ point: ids[3], guestOffset: 9 * CLUSTER, from: "the living disk" }]);
    expect(left).toMatchObject([{ point: ids[2], guestOffset: 9 * CLUSTER }]);
    expect(await readFile(chain.file(3))).toEqual(before);
    expect((await run("repair", "guest", "--from", "vda")).code).toBe(2);
    expect((await run("repair", ...from("nbd+unix:///vda?socket=/nowhere"))).code).toBe(1);
  });

  it("mends what is not zero in a raw image where the point has zeroes, and where it has nothing", async () => {
    await using raw = await MemoryChain.start(40 * CLUSTER + 512);
    raw.disk.write(4 * CLUSTER, Buffer.alloc(CLUSTER, 0x11));
    await raw.take({ format: "raw", digests: "sha256" });
    raw.disk.writeZeroes(4 * CLUSTER, 2 * CLUSTER);
    raw.disk.write(9 * CLUSTER, Buffer.alloc(CLUSTER, 0x31));
    await raw.take({ format: "raw", digests: "sha256" });
    const files = [raw.file(0, "vda.raw"), raw.file(1, "vda.raw")] as const;
    const before = await Promise.all(files.map((file) => readFile(file)));
    await flip(files[0], 2 * CLUSTER + 5, CLUSTER);
    await flip(files[0], 40 * CLUSTER + 511);
    await flip(files[1], 5 * CLUSTER + 5);
    const ran = await nbdpull("repair", raw.repository.path, "--json");
    const [domain] = (ran.json() as { domains: Repaired[] }).domains;
    expect(domain?.mended.map(({ point, guestOffset, from }) => [point, guestOffset, from])).toEqual([
      ...[2, 3].map((cluster) => [raw.points[0]?.id, cluster * CLUSTER, "zeroes"]),
      [raw.points[0]?.id, 40 * CLUSTER, "zeroes"],
      [raw.points[1]?.id, 5 * CLUSTER, "zeroes"],
    ]);
    expect(ran.code).toBe(0);
    expect(await Promise.all(files.map((file) => readFile(file)))).toEqual(before);
  });

  it("mends what is not zero in a raw image where only parts of clusters are zero", async () => {
    await using raw = await MemoryChain.start(40 * CLUSTER + 4096 + 512, undefined, 4096);
    raw.disk.write(0, Buffer.alloc(40 * CLUSTER + 4608, 0x11));
    await raw.take({ format: "raw", digests: "sha256", granularity: 4096 });
    // Beside data, and alone; the last one ends with the disk.
    raw.disk.write(4 * CLUSTER + 4096, Buffer.alloc(4096, 0x21));
    raw.disk.writeZeroes(4 * CLUSTER + 16384, 8192);
    raw.disk.writeZeroes(6 * CLUSTER, 8192);
    raw.disk.writeZeroes(40 * CLUSTER + 4096, 512);
    await raw.take({ format: "raw", digests: "sha256" });
    const file = raw.file(1, "vda.raw");
    const before = await readFile(file);
    expect((await nbdpull("verify", raw.repository.path)).code).toBe(0);
    const places = [4 * CLUSTER + 16384, 6 * CLUSTER, 40 * CLUSTER + 4096];
    await flip(file, 4 * CLUSTER + 16384 + 4095, 3);
    await flip(file, 6 * CLUSTER + 8191);
    await flip(file, 40 * CLUSTER + 4096 + 511);
    const verified = await nbdpull("verify", raw.repository.path, "--json");
    const offsets = [...verified.stdout.matchAll(/"guestOffset": ?(\d+)/g)].map(([, offset]) =>
      Number(offset),
    );
    expect([verified.code, offsets]).toEqual([3, places]);
    const ran = await nbdpull("repair", raw.repository.path, "--json");
    const [domain] = (ran.json() as { domains: Repaired[] }).domains;
    expect(domain?.mended.map(({ point, guestOffset, from }) => [point, guestOffset, from])).toEqual(
      places.map((place) => [raw.points[1]?.id, place, "zeroes"]),
    );
    expect([ran.code, await readFile(file)]).toEqual([0, before]);
  });

  it("asks libvirt for the domain only where no point mends it, and says what was mended if that fails", async () => {
    const nowhere = ["guest", "--from-domain", "--connect", "qemu+unix:///system?socket=/nowhere"];
    expect((await run("repair", ...nowhere)).code).toBe(0);
    // Point 3 has the content of this one.
    await flip(chain.file(0), 2 * CLUSTER + 5);
    expect((await repair(0, ...nowhere)).mended).toMatchObject([{ guestOffset: CLUSTER }]);
    await flip(chain.file(0), 2 * CLUSTER + 5);
    await flip(chain.file(2), CLUSTER + 5);
    const failed = await run("repair", ...nowhere);
    expect(failed.stderr).toMatch(/E_LIBVIRT: /);
    expect(failed.stderr).toContain(`${ids[0]} vda was mended before this failed: guest offset ${CLUSTER}`);
    expect((await run("repair", "guest", "--from-domain", "--from", `vda=${chain.uri}`)).code).toBe(2);
    expect((await run("repair", "guest", "--scratch", "/var/tmp")).code).toBe(2);
  });

  it("makes a digest file again that was lost or damaged, if image and manifest agree on it", async () => {
    for (const point of [0, 1]) {
      const right = await readFile(chain.file(point, "vda.digests"));
      await flip(chain.file(point, "vda.digests"), 100);
      expect((await repair(0)).mended).toMatchObject([{ point: ids[point], what: "digests" }]);
      expect(await readFile(chain.file(point, "vda.digests"))).toEqual(right);
      await rm(chain.file(point, "vda.digests"));
      expect((await repair(0)).mended).toMatchObject([{ point: ids[point], what: "digests" }]);
      expect(await readFile(chain.file(point, "vda.digests"))).toEqual(right);
    }
    await rm(chain.file(0, "vda.digests"));
    await flip(chain.file(0), 2 * CLUSTER);
    const { mended, left } = await repair(3);
    expect(mended).toEqual([]);
    expect(left).not.toEqual([]);
    expect((await readdir(join(chain.file(0), ".."))).filter((name) => /digests/.test(name))).toEqual([]);
  });

  it("frees space that nothing uses, and mends refcounts, as qemu-img sees it", async () => {
    const path = chain.file(0);
    const { block, end, table } = await refcountsOf(path);
    await truncate(path, Math.ceil(end / CLUSTER) * CLUSTER + CLUSTER);
    await using handle = await open(path, "r+");
    await handle.write(Buffer.from([0, 1]), 0, 2, block + 2 * Math.ceil(end / CLUSTER));
    // The refcount of the header is lost, too.
    await handle.write(Buffer.from([0, 0]), 0, 2, block);
    // Entries of the refcount table for clusters that there are none of: behind the end of the file, and at data.
    await handle.write(Buffer.alloc(8, 0xff), 0, 8, table + CLUSTER - 8);
    await handle.write(Buffer.from([0, 0, 0, 0, 0, 1, 0, 0]), 0, 8, table + 16);
    await expect(qemuImg("check", path)).rejects.toThrow(/leaked|errors/);
    expect((await repair(0)).mended).toMatchObject([{ point: ids[0], what: "refcounts" }]);
    await qemuImg("check", path);
    expect((await run("verify", "--strict")).code).toBe(0);
  });

  it("leaves an image alone in which two places claim a cluster: mending one would destroy the other", async () => {
    const bytes = await readFile(chain.file(0));
    const l1 = Number(bytes.readBigUInt64BE(40));
    const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
    bytes.writeBigUInt64BE(bytes.readBigUInt64BE(l2 + 8), l2);
    await writeFile(chain.file(0), bytes);
    const { mended, left } = await repair(3);
    expect(mended).toEqual([]);
    expect(left).not.toEqual([]);
    expect(await readFile(chain.file(0))).toEqual(bytes);
  });

  it("goes on after it was killed at any moment, and nothing is lost", async () => {
    const before = await readFile(chain.file(0));
    await copyFile(chain.file(0), join(chain.folder, "kept"));
    for (const delay of [350, 500, 650]) {
      for (let cluster = 1; cluster < 28; cluster += 2)
        await flip(chain.file(0), (cluster + 1) * CLUSTER, 4096);
      const running = startNbdpull(["repair", chain.repository.path]);
      await sleep(delay);
      running.kill("SIGKILL");
      await running.ended;
    }
    const again = await run("repair");
    // Cluster 3 was overwritten partly, and 7 to 9 were discarded before the second full point was taken.
    const lost = [3, 7, 9].map((cluster) => cluster * CLUSTER);
    const { left } = await repair(again.code === 0 ? 0 : 3);
    expect(left.map(({ guestOffset }) => guestOffset)).toEqual(lost);
    const now = await readFile(chain.file(0));
    for (let cluster = 0; cluster < 30; cluster += 1) {
      if (lost.includes(cluster * CLUSTER)) continue;
      const at = (cluster + 1) * CLUSTER;
      expect(now.subarray(at, at + CLUSTER).equals(before.subarray(at, at + CLUSTER))).toBe(true);
    }
  });
});

describe("restore --salvage", () => {
  interface Salvaged {
    readonly salvaged: readonly {
      lostBytes: number;
      lost: { offset: number; length: number; point: string }[];
    }[];
  }

  async function salvage(point: number, code: number): Promise<{ told: Salvaged; found: Buffer }> {
    const to = join(chain.folder, "out", "vda.raw");
    const ran = await run(
      "restore",
      "--at",
      ids[point] ?? "",
      "--to",
      join(chain.folder, "out"),
      "--salvage",
      "--force",
      "--json",
    );
    expect([ran.code, ran.stderr]).toEqual([code, ""]);
    expect((await stat(to)).size).toBe(SIZE);
    return { told: ran.json() as Salvaged, found: await readFile(to) };
  }

  it("gives the whole disk where nothing is damaged", async () => {
    const { told, found } = await salvage(2, 0);
    expect(told.salvaged).toMatchObject([{ lostBytes: 0, lost: [] }]);
    expect(found.equals(await contentOf(2))).toBe(true);
  });

  it("gives what can be proven, zeroes for the rest, and lists that", async () => {
    await flip(chain.file(0), 2 * CLUSTER);
    await flip(chain.file(1), CLUSTER + 100);
    const { told, found } = await salvage(2, 3);
    const [disk] = told.salvaged;
    expect(disk?.lost.map(({ offset, length, point }) => [offset, length, point])).toEqual([
      [CLUSTER, CLUSTER, ids[0]],
      [3 * CLUSTER, CLUSTER, ids[1]],
    ]);
    expect(disk?.lostBytes).toBe(2 * CLUSTER);
    const right = await contentOf(2);
    for (const { offset, length } of disk?.lost ?? []) right.fill(0, offset, offset + length);
    expect(found.equals(right)).toBe(true);
  });

  it.each([
    ["in a full point", 0],
    ["in an increment", 1],
  ])(
    "keeps all that is proven beside damaged and empty entries of an image's tables: %s",
    async (_, number) => {
      const bytes = await readFile(chain.file(number));
      const l2Table = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0x00fffffffffffe00n);
      const stored = Array.from({ length: SIZE / CLUSTER }, (_, cluster) => cluster).filter((cluster) =>
        bytes.readBigUInt64BE(l2Table + cluster * 8),
      );
      const [damaged = 0, ...empty] = stored.slice(-6, -1).reverse();
      await using image = await open(chain.file(number), "r+");
      // It points behind the end of the file now.
      await image.write(Buffer.from("8000010000000000", "hex"), 0, 8, l2Table + damaged * 8);
      for (const cluster of empty) await image.write(Buffer.alloc(8), 0, 8, l2Table + cluster * 8);
      const { told, found } = await salvage(number, 3);
      const right = await contentOf(number);
      const lost = [damaged, ...empty];
      for (const cluster of lost) right.fill(0, cluster * CLUSTER, (cluster + 1) * CLUSTER);
      expect(found.equals(right)).toBe(true);
      const parts = told.salvaged[0]?.lost ?? [];
      expect(parts.reduce((sum, { length }) => sum + length, 0)).toBe(lost.length * CLUSTER);
    },
  );

  it.each([
    ["is missing", (): Promise<void> => rm(join(chain.file(1), ".."), { recursive: true })],
    ["lost its digests", (): Promise<void> => rm(chain.file(1, "vda.digests"))],
    ["was cut off", (): Promise<void> => truncate(chain.file(1), CLUSTER)],
  ])("shows nothing of what lies below a layer that %s", async (_, break_) => {
    await break_();
    const { told, found } = await salvage(2, 3);
    expect(told.salvaged[0]?.lost.map(({ offset, length }) => [offset, length])).toEqual([
      [0, 9 * CLUSTER],
      [10 * CLUSTER, SIZE - 10 * CLUSTER],
    ]);
    const right = Buffer.alloc(SIZE);
    (await contentOf(2)).copy(right, 9 * CLUSTER, 9 * CLUSTER, 10 * CLUSTER);
    expect(found.equals(right)).toBe(true);
  });
});
