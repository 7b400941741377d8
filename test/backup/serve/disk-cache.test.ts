import { randomBytes } from "node:crypto";
import { mkdtemp, open, readdir, readlink, rm, stat, statfs } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DiskCache } from "../../../src/backup/serve/disk-cache.js";
import { describeWithMounts, mountSmall } from "../../support/small-file-system.js";

const CLUSTER = 64 * 1024;

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-cache-test-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

const refuse = (error: unknown): never => {
  throw error;
};

/** The descriptors of this process for files in the folder, which have no name any more. */
async function descriptors(): Promise<string[]> {
  const all = await readdir("/proc/self/fd");
  const targets = await Promise.all(all.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => "")));
  return all.filter((_, i) => targets[i]?.startsWith(folder)).map((fd) => `/proc/self/fd/${fd}`);
}

async function put(cache: DiskCache, key: number, bytes: Buffer): Promise<void> {
  cache.put(key, bytes);
  await expect.poll(() => cache.get(key, bytes.length)).toEqual(bytes);
}

describe("a cache on a disk", () => {
  it("gives back what was put there, in a file without a name that is no larger than allowed", async () => {
    const at = join(folder, "made");
    const cache = await DiskCache.create({ folder: at, bytes: 3 * CLUSTER + 1 }, CLUSTER, refuse);
    expect((await stat(at)).mode & 0o777).toBe(0o700);
    const clusters = Array.from({ length: 6 }, (_, i) => randomBytes(i === 4 ? 577 : CLUSTER));
    for (const [key, bytes] of clusters.entries()) {
      await put(cache, key, bytes);
      // The first one stays, because it is used.
      if (key > 0) expect(await cache.get(0, CLUSTER)).toEqual(clusters[0]);
    }
    const found = await Promise.all(clusters.map((bytes, key) => cache.get(key, bytes.length)));
    expect(found).toEqual([clusters[0], undefined, undefined, undefined, clusters[4], clusters[5]]);
    expect(await readdir(at)).toEqual([]);
    const [file = ""] = await descriptors();
    expect((await stat(file)).size).toBeLessThanOrEqual(3 * CLUSTER);
    await cache.close();
    expect(await descriptors()).toEqual([]);
  });

  it("believes nothing that was changed on the disk, and keeps it anew", async () => {
    const cache = await DiskCache.create({ folder, bytes: 4 * CLUSTER }, CLUSTER, refuse);
    const [one, other] = [randomBytes(CLUSTER), randomBytes(CLUSTER)];
    await put(cache, 1, one);
    await put(cache, 2, other);
    const [path = ""] = await descriptors();
    const file = await open(path, "r+");
    await file.write(Buffer.from([(one[100] ?? 0) ^ 1]), 0, 1, 100);
    expect(await cache.get(1, CLUSTER)).toBeUndefined();
    expect(await cache.get(2, CLUSTER)).toEqual(other);
    await put(cache, 1, one);
    // Not even a cluster that is right elsewhere, nor one that is cut off.
    await file.write(other, 0, CLUSTER, 0);
    expect(await cache.get(1, CLUSTER)).toBeUndefined();
    await file.truncate(CLUSTER + 5);
    expect(await cache.get(2, CLUSTER)).toBeUndefined();
    await file.close();
    await cache.close();
  });

  it("is shared by many who read and write at once, each of whom gets the right bytes or none", async () => {
    const cache = await DiskCache.create({ folder, bytes: 5 * CLUSTER }, CLUSTER, refuse);
    const clusters = Array.from({ length: 12 }, () => randomBytes(CLUSTER));
    let hits = 0;
    const reader = async (seed: number): Promise<void> => {
      for (let round = 0; round < 60; round += 1) {
        const key = (seed * 5 + round * 7 + ((seed * round) % 3)) % clusters.length;
        const found = await cache.get(key, CLUSTER);
        if (found) {
          hits += 1;
          expect(found.equals(clusters[key] as Buffer)).toBe(true);
        } else cache.put(key, clusters[key] as Buffer);
        await sleep(1);
      }
    };
    await Promise.all(Array.from({ length: 12 }, (_, seed) => reader(seed)));
    expect(hits).toBeGreaterThan(0);
    await cache.close();
  });

  it("keeps nothing that comes while 8 MiB are being written", async () => {
    const cache = await DiskCache.create({ folder, bytes: 200 * CLUSTER }, CLUSTER, refuse);
    const bytes = randomBytes(CLUSTER);
    for (let key = 0; key < 200; key += 1) cache.put(key, bytes);
    const kept = async (): Promise<number> => {
      const found = await Promise.all(Array.from({ length: 200 }, (_, key) => cache.get(key, CLUSTER)));
      return found.filter((cluster) => cluster !== undefined).length;
    };
    await expect.poll(kept).toBe(128);
    await put(cache, 199, bytes);
    await cache.close();
  });

  it("has no more clusters than can be told apart, however large it may be", async () => {
    const cache = await DiskCache.create({ folder, bytes: Number.MAX_SAFE_INTEGER }, CLUSTER, refuse);
    const bytes = randomBytes(CLUSTER);
    await put(cache, 2 ** 40, bytes);
    await cache.close();
    const elsewhere = { folder: join(folder, "no/such"), bytes: Number.MAX_SAFE_INTEGER };
    await expect(DiskCache.create(elsewhere, CLUSTER, refuse)).rejects.toThrow(/no\/such: ENOENT/);
    expect(await descriptors()).toEqual([]);
  });

  it("is refused where no file can be, or no cluster fits", async () => {
    const created = (at: string, bytes: number) => DiskCache.create({ folder: at, bytes }, CLUSTER, refuse);
    await expect(created(join(folder, "no/such"), CLUSTER)).rejects.toMatchObject({ code: "E_CACHE" });
    await expect(created(folder, CLUSTER - 1)).rejects.toMatchObject({ code: "E_CACHE" });
  });
});

describeWithMounts("a cache on a full disk", () => {
  it("says so once, and gives back the room that it has taken", async () => {
    await using _ = await mountSmall(folder, 8 * CLUSTER);
    const free = async (): Promise<number> => (await statfs(folder)).bfree;
    const before = await free();
    const failures: unknown[] = [];
    const cache = await DiskCache.create({ folder, bytes: 100 * CLUSTER }, CLUSTER, (error) =>
      failures.push(error),
    );
    const bytes = randomBytes(CLUSTER);
    await put(cache, 0, bytes);
    for (let key = 1; key < 30; key += 1) cache.put(key, bytes);
    await expect.poll(() => failures).toEqual([expect.objectContaining({ code: "ENOSPC" })]);
    await expect.poll(free).toBe(before);
    cache.put(99, bytes);
    expect(await cache.get(0, CLUSTER)).toBeUndefined();
    await cache.close();
    expect(await free()).toBe(before);
    expect(failures).toHaveLength(1);
  });
});
