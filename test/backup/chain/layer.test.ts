import { readdir, readlink } from "node:fs/promises";
import { expect, it, vi } from "vitest";
import { Layer } from "../../../src/backup/chain/layer.js";
import { DigestFileReader } from "../../../src/backup/digest/digest-file-reader.js";
import { MemoryChain } from "../../support/memory-chain.js";

async function openFiles(): Promise<string[]> {
  const numbers = await readdir("/proc/self/fd");
  return await Promise.all(numbers.map((n) => readlink(`/proc/self/fd/${n}`).catch(() => "")));
}

it("a layer closes its image and its folder also if its digest file can't be closed", async () => {
  await using chain = await MemoryChain.start(1024 * 1024);
  chain.disk.write(0, Buffer.alloc(65_536, 1));
  const { manifest } = await chain.take();
  const [disk] = manifest.disks;
  if (disk === undefined) throw new Error("the point has no disk");
  const folder = await chain.repository.holdPoint(MemoryChain.domain, manifest.id);
  const layer = await Layer.open(folder, manifest.id, disk);
  const ofPoint = (name: string): boolean => name.startsWith(chain.pathOf(manifest, "").replace(/\/$/, ""));
  expect((await openFiles()).filter(ofPoint).length).toBeGreaterThanOrEqual(3);

  const { close } = DigestFileReader.prototype;
  const closing = vi.spyOn(DigestFileReader.prototype, "close").mockImplementationOnce(async function (
    this: DigestFileReader,
  ) {
    await close.call(this);
    throw new Error("I/O error");
  });
  await expect(layer.close()).rejects.toThrow("I/O error");
  expect(closing).toHaveBeenCalledOnce();
  expect((await openFiles()).filter(ofPoint)).toEqual([]);
});
