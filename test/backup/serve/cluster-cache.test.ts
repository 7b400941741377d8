import { describe, expect, it } from "vitest";
import { ClusterCache } from "../../../src/backup/serve/cluster-cache.js";

/** A cache of two clusters, and the keys that were read for it. */
function cacheOfTwo(): { get: (key: string) => Promise<string>; read: string[] } {
  const cache = new ClusterCache(2);
  const read: string[] = [];
  const get = async (key: string): Promise<string> => {
    const bytes = await cache.get(key, async () => {
      read.push(key);
      return Buffer.from(`bytes of ${key}`);
    });
    return bytes.toString();
  };
  return { get, read };
}

describe("the cluster cache", () => {
  it("evicts the least recently used cluster", async () => {
    const { get, read } = cacheOfTwo();
    for (const key of ["a", "b", "a", "c", "a", "b"]) expect(await get(key)).toBe(`bytes of ${key}`);
    expect(read).toEqual(["a", "b", "c", "b"]);
  });

  it("shares one read among concurrent requests for a cluster, even if it is evicted meanwhile", async () => {
    const { get, read } = cacheOfTwo();
    const keys = ["a", "a", "b", "c", "c"];
    expect(await Promise.all(keys.map(get))).toEqual(keys.map((key) => `bytes of ${key}`));
    expect(read).toEqual(["a", "b", "c"]);
  });

  it("does not cache failures: the next request reads again", async () => {
    const cache = new ClusterCache(2);
    const fail = (): Promise<Buffer> => Promise.reject(new Error("a flipped bit"));
    const outcomes = await Promise.allSettled([cache.get("a", fail), cache.get("a", fail)]);
    expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect((await cache.get("a", async () => Buffer.from("mended"))).toString()).toBe("mended");
  });
});
