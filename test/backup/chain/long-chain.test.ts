import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { Repository } from "../../../src/backup/repository/repository.js";
import { verifyPoints } from "../../../src/backup/verify/verify.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { restoreDisk } from "../../support/restore-disk.js";

const POINTS = 60;

let chain: MemoryChain;
beforeAll(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  for (let i = 0; i < POINTS; i += 1) {
    chain.disk.write(i * 512, Buffer.alloc(512, i + 1));
    await chain.take();
  }
});
afterAll(async () => {
  await chain[Symbol.asyncDispose]();
});
afterEach(() => {
  vi.restoreAllMocks();
});

describe("a long chain", () => {
  it("is verified with a few reads of each manifest, not one for every point above it", async () => {
    const reads = vi.spyOn(Repository.prototype, "point");
    const ids = await chain.repository.pointIds(MemoryChain.domain);
    const reports = await verifyPoints(chain.repository, MemoryChain.domain, ids);
    expect(reports.flatMap(({ findings }) => findings)).toEqual([]);
    expect(reads.mock.calls.length).toBeLessThanOrEqual(4 * POINTS);
  });

  it("is restored from its newest point", async () => {
    const point = chain.points.at(-1);
    if (!point) throw new Error("no point");
    const targetPath = `${chain.folder}/restored.raw`;
    const options = { repository: chain.repository, diskName: "vda", targetPath, format: "raw" } as const;
    const result = await restoreDisk({ ...options, point, force: false, sync: false });
    expect(result.chain).toHaveLength(POINTS);
  });
});
