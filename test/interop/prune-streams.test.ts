import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { prune } from "../../src/backup/prune/prune.js";
import { MemoryChain } from "../support/memory-chain.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const CLUSTER = 64 * KiB;

describeWith(["qemu-img"], "prune of compressed images", () => {
  it("copies streams nearly as long as a cluster, and longer when rounded to sectors", async () => {
    await using chain = await MemoryChain.start(40 * MiB);
    // A sixteenth of each cluster compresses well; the rest makes this image the base of the merge.
    for (let at = 0; at < 24 * MiB; at += CLUSTER) {
      chain.disk.write(at, Buffer.concat([randomBytes(CLUSTER - 4 * KiB), Buffer.alloc(4 * KiB, 1)]));
    }
    await chain.take({ compress: "deflate" });
    for (let round = 0; round < 4; round += 1) {
      for (let i = 0; i < 40; i += 1) {
        // Alternately too long when rounded, and incompressible.
        const zeroes = i % 3 === 2 ? 0 : 60 + i * 6 + round;
        const at = (round * 40 + i) * CLUSTER;
        chain.disk.write(at, Buffer.concat([randomBytes(CLUSTER - zeroes), Buffer.alloc(zeroes)]));
      }
      await chain.take({ compress: "deflate" });
      await prune({
        repository: chain.repository,
        domain: MemoryChain.domain,
        retention: { last: 1 },
        dryRun: false,
        sync: false,
      });
      const id = chain.points.at(-1)?.id ?? "";
      const image = join(chain.repository.pointFolder(MemoryChain.domain, id), "vda.qcow2");
      await qemuImg("check", image);
      const raw = join(chain.folder, "theirs.raw");
      await qemuImg("convert", "-O", "raw", image, raw);
      const content = Buffer.from(
        (await chain.contents.get(id)?.read(0, chain.disk.size)) ?? Buffer.alloc(0),
      );
      expect((await readFile(raw)).equals(content)).toBe(true);
    }
  }, 480_000);
});
