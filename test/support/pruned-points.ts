/** What tests of a prune write to the disk, and what has to be there after it. */
import { join } from "node:path";
import { expect } from "vitest";
import { Repository } from "../../src/backup/repository/repository.js";
import { verifyPoints } from "../../src/backup/verify/verify.js";
import { MemoryChain } from "./memory-chain.js";
import { restoreDisk } from "./restore-disk.js";
import { hasBytes } from "./same-bytes.js";

const DOMAIN = MemoryChain.domain;

export function pattern(length: number, seed: number): Buffer {
  return Buffer.alloc(length, Buffer.from(`${seed} is what was written here; `));
}

/** The points are there, verify finds nothing, and those to be restored give what the disk was. */
export async function expectRestorable(
  chain: MemoryChain,
  path: string,
  ids: readonly string[],
  restored = ids,
): Promise<void> {
  const repository = await Repository.open(path);
  await repository.reading(DOMAIN, async () => {
    const present = await repository.pointIds(DOMAIN);
    for (const id of ids) expect(present).toContain(id);
    for (const id of restored) {
      const point = await repository.point(DOMAIN, id);
      const targetPath = join(chain.folder, "ours.raw");
      const options = { repository, point, diskName: "vda", targetPath, format: "raw" } as const;
      await restoreDisk({ ...options, force: true, sync: false });
      expect(hasBytes(targetPath, await chain.contentOf(id))).toBe(true);
    }
    const reports = await verifyPoints(repository, DOMAIN, ids);
    expect(reports.flatMap(({ findings }) => findings)).toEqual([]);
  });
}
