import { open } from "node:fs/promises";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, it } from "vitest";
import { Layer } from "../../../src/backup/chain/layer.js";
import { type ClusterMend, damagedClusters } from "../../../src/backup/repair/mend-clusters.js";
import { MemoryChain } from "../../support/memory-chain.js";

const MIB = 1024 * 1024;
const GARBAGE = 128 * MIB;

/** Bytes of all buffers that something still refers to. */
function keptBytes(): number {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  collect();
  return process.memoryUsage().arrayBuffers;
}

it("keeps no content of what is not zero in a raw image, for whoever reads it once more", async () => {
  await using chain = await MemoryChain.start(GARBAGE + MIB);
  chain.disk.write(GARBAGE, Buffer.alloc(MIB, "data"));
  const { manifest } = await chain.take({ format: "raw" });
  const [disk] = manifest.disks;
  if (!disk) throw new Error("there is no disk");
  const path = join(chain.repository.pointFolder(MemoryChain.domain, manifest.id), disk.file);
  await using image = await open(path, "r+");
  const garbage = Buffer.alloc(MIB, "garbage");
  for (let at = 0; at < GARBAGE; at += MIB) await image.write(garbage, 0, MIB, at);
  const folder = await chain.repository.openPoint(MemoryChain.domain, manifest.id);
  await using layer = await Layer.open(folder, manifest.id, disk);
  const before = keptBytes();
  const again: ClusterMend["again"][] = [];
  let length = 0;
  for await (const damaged of damagedClusters(layer, { sources: [], compressed: false })) {
    if (damaged.mend) again.push(damaged.mend.again);
    length += damaged.length;
  }
  expect(length).toBe(GARBAGE);
  expect(keptBytes() - before).toBeLessThan(GARBAGE / 4);
  const bytes = await Promise.all(again.slice(0, 2).map((read) => read()));
  expect(bytes.map((each) => each?.every((byte) => byte === 0))).toEqual([true, true]);
});
