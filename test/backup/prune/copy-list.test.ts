import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { RawReader } from "../../../src/backup/image/raw-reader.js";
import {
  applyCopyList,
  CopyList,
  type CopySource,
  FROM_ZEROES,
} from "../../../src/backup/prune/copy-list.js";

const geometry = { virtualSize: 65_536, clusterSize: 16_384 };
let folder: string;
let source: CopySource;
const at = (name: string): string => join(folder, name);

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-copies-"));
  await writeFile(at("source"), Buffer.alloc(65_536, 1));
  await writeFile(at("image"), Buffer.alloc(65_536, 2));
  source = { reader: await RawReader.open(at("source"), { geometry }), end: geometry.virtualSize };
});
afterEach(async () => {
  await source.reader.close();
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

const apply = async (path: string, copies?: number): Promise<Buffer> => {
  await applyCopyList(path, at("image"), [source], { copies, sync: false });
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

  it("is damaged if it ends between two records, which only the count in the journal tells", async () => {
    const path = await list(0);
    await apply(path, 2);
    await truncate(path, 32);
    await expect(apply(path, 2)).rejects.toMatchObject({ code: "E_PRUNE_JOURNAL" });
    await apply(path);
  });

  it.each([
    ["goes past the end of the image", { layer: 0, from: 0, to: 65_530, length: 7 }],
    ["begins before the image", { layer: 0, from: 0, to: -1, length: 7 }],
    ["goes past the end of its source", { layer: 0, from: 65_530, to: 0, length: 7 }],
    ["has no whole number", { layer: 0, from: 0.5, to: 0, length: 7 }],
    ["has no end", { layer: FROM_ZEROES, from: 0, to: 0, length: Number.POSITIVE_INFINITY }],
    ["has no number at all", { layer: 0, from: Number.NaN, to: 0, length: 7 }],
  ])("is forged if a copy %s, and then no copy before it is made", async (_, forged) => {
    const copies = new CopyList();
    copies.add({ layer: 0, from: 0, to: 1000, length: 100 });
    copies.add(forged);
    await copies.save(at("list"), { sync: false });
    await expect(apply(at("list"))).rejects.toMatchObject({ code: "E_PRUNE_JOURNAL" });
    expect((await readFile(at("image"))).equals(Buffer.alloc(65_536, 2))).toBe(true);
  });
});
