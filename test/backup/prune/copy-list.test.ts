import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { ImageReader } from "../../../src/backup/image/image.js";
import { RawReader } from "../../../src/backup/image/raw-reader.js";
import { applyCopyList, CopyList, FROM_ZEROES } from "../../../src/backup/prune/copy-list.js";

const geometry = { virtualSize: 65_536, clusterSize: 16_384 };
let folder: string;
let source: ImageReader;
const at = (name: string): string => join(folder, name);

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-copies-"));
  await writeFile(at("source"), Buffer.alloc(65_536, 1));
  await writeFile(at("image"), Buffer.alloc(65_536, 2));
  source = await RawReader.open(at("source"), { geometry });
});
afterEach(async () => {
  await source.close();
  await rm(folder, { recursive: true });
});

/** Writes a list: 100 bytes from the source, then 50 zeroes. */
async function list(layer: number): Promise<string> {
  const copies = new CopyList();
  copies.add({ layer, from: 0, to: 1000, length: 100 });
  copies.add({ layer: FROM_ZEROES, from: 2000, to: 2000, length: 50 });
  await copies.save(at("list"), { sync: false });
  return at("list");
}

const apply = async (path: string): Promise<Buffer> => {
  await applyCopyList(path, at("image"), [source], { sync: false });
  return await readFile(at("image"));
};

describe("a list of copies", () => {
  it("brings the listed bytes into the image, and can be repeated", async () => {
    const path = await list(0);
    const wanted = Buffer.alloc(65_536, 2);
    wanted.fill(1, 1000, 1100).fill(0, 2000, 2050);
    expect((await apply(path)).equals(wanted)).toBe(true);
    expect((await apply(path)).equals(wanted)).toBe(true);
  });

  it("is damaged if it names an image that is not there, and then no byte of others is written", async () => {
    const path = await list(7);
    await expect(apply(path)).rejects.toMatchObject({ code: "E_PRUNE_JOURNAL" });
    expect((await readFile(at("image"))).equals(Buffer.alloc(65_536, 2))).toBe(true);
  });

  it("is damaged if it ends in the middle of a record", async () => {
    const path = await list(0);
    await truncate(path, 32 + 20);
    await expect(apply(path)).rejects.toMatchObject({ code: "E_PRUNE_JOURNAL" });
  });
});
