import { deflateRawSync } from "node:zlib";
import { expect, it } from "vitest";
import { decompressCluster, giveBackCluster } from "../../../src/backup/qcow2/decompress.js";

it.each([true, false])(
  "returns the memory of a cluster at once, by a thread that blocks: %s",
  async (blocking) => {
    for (const clusterSize of [65_536, 2 * 1024 * 1024]) {
      const content = Buffer.alloc(clusterSize, "text of a guest, ");
      const cluster = await decompressCluster(deflateRawSync(content), "deflate", clusterSize, { blocking });
      expect(cluster.equals(content)).toBe(true);
      giveBackCluster(cluster);
      expect(cluster.length).toBe(0);
    }
  },
);

it("leaves memory alone that others have a part of", async () => {
  const neighbour = Buffer.from("a neighbour");
  for (const clusterSize of [512, 1024, 4096]) {
    const stream = deflateRawSync(Buffer.alloc(clusterSize, "small"));
    const small = [1, 2].map(() => decompressCluster(stream, "deflate", clusterSize, { blocking: true }));
    const [one, two] = await Promise.all(small);
    if (one) giveBackCluster(one);
    expect(two?.equals(Buffer.alloc(clusterSize, "small"))).toBe(true);
  }
  expect(`${neighbour}`).toBe("a neighbour");
  const part = Buffer.alloc(1024).subarray(64);
  giveBackCluster(part);
  expect(part.length).toBe(960);
});
