import { truncate, writeFile } from "node:fs/promises";
import { expect, it } from "vitest";
import { OpenImages, type StoredImage } from "../../../src/backup/chain/open-images.js";
import { scratch } from "../image/support.js";

const CLUSTER = 64 * 1024;

it("an image stays open while it is used, however many others are opened", async () => {
  const at = await scratch();
  const images = await Promise.all(
    Array.from({ length: 140 }, async (_, i): Promise<StoredImage> => {
      await writeFile(at(`${i}`), "");
      await truncate(at(`${i}`), CLUSTER);
      const geometry = { virtualSize: CLUSTER, clusterSize: CLUSTER };
      return { path: at(`${i}`), format: "raw", geometry, algorithm: undefined };
    }),
  );
  const open = new OpenImages();
  const [first, ...others] = images as [StoredImage, ...StoredImage[]];
  const found: string[] = [];
  using used = await open.get(first);
  for (const image of others) {
    using each = await open.get(image);
    await each.image.expectZeroes(0, CLUSTER, ({ message }) => found.push(message));
  }
  await used.image.expectZeroes(0, CLUSTER, ({ message }) => found.push(message));
  expect(found).toEqual([]);
  await open.closeAll();
});
