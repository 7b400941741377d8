import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { prune } from "../../src/backup/prune/prune.js";
import type { Repository } from "../../src/backup/repository/repository.js";
import { expectCompleted, leftByPrune } from "../support/left-by-prune.js";
import { MemoryChain } from "../support/memory-chain.js";
import { expectRestorable, pattern } from "../support/pruned-points.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { beginsWith } from "../support/same-bytes.js";
import { describeWith } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const SIZE = 4 * MiB + 577;
const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

interface Story {
  readonly format: "qcow2" | "raw";
  readonly name: string;
  readonly full: number;
  readonly change: number;
  /** Used in turn for the bitmaps: below 2 KiB, clusters have 16 KiB. */
  readonly granularities: readonly number[];
  readonly digests: "xxh64" | undefined;
  readonly base: "the full one" | "an increment";
}

const OLD: Story = {
  format: "raw",
  name: "an old image that is large",
  full: 3 * MiB,
  change: 96 * KiB,
  granularities: [4096],
  digests: "xxh64",
  base: "the full one",
};
const STORIES: readonly Story[] = [
  OLD,
  { ...OLD, name: "a young image that is large", full: 256 * KiB, change: 2 * MiB, base: "an increment" },
  { ...OLD, name: "an old image of larger clusters", granularities: [512] },
  { ...OLD, format: "qcow2", name: "an old image of larger clusters", granularities: [512] },
  { ...OLD, name: "images without digests", digests: undefined },
];

/** Takes points with data, zeroes, discards and parts of clusters. */
async function takePoints({ format, full, change, granularities, digests }: Story): Promise<void> {
  const { disk } = chain;
  const next = (round: number): number => granularities[round % granularities.length] as number;
  disk.write(0, pattern(full, 1));
  await chain.take({ format, digests, granularity: next(0) });
  for (let round = 1; round <= 3; round += 1) {
    disk.write(round * 300 * KiB, pattern(change, 10 + round));
    disk.write(MiB + round * 4096, pattern(4096, 20 + round));
    disk.writeZeroes(round * 200 * KiB, 100 * KiB);
    disk.writeZeroes(2 * MiB + round * 70 * KiB, 5 * KiB);
    disk.discard(2 * MiB + round * 128 * KiB, 128 * KiB);
    disk.write(SIZE - 500, pattern(400, round));
    await chain.take({ format, digests, granularity: next(round) });
  }
}

const lastIds = (count: number): string[] => chain.points.slice(-count).map(({ id }) => id);

const expectPoints = (path: string, ids: readonly string[], restored = ids): Promise<void> =>
  expectRestorable(chain, path, ids, restored);

/** The image has no backing file, and its bytes are those of the disk. */
async function expectStock(repository: Repository, id: string): Promise<void> {
  const [disk] = (await repository.point(DOMAIN, id)).disks;
  const image = join(repository.pointFolder(DOMAIN, id), disk?.file ?? "");
  if (disk?.format === "qcow2") await qemuImg("check", image);
  const theirs = join(chain.folder, "theirs.raw");
  await qemuImg("convert", "-f", disk?.format ?? "", "-O", "raw", image, theirs);
  expect(beginsWith(theirs, await chain.contentOf(id))).toBe(true);
}

const pruned = { domain: DOMAIN, retention: { last: 2 }, dryRun: false, sync: false } as const;

describeWith(["qemu-img"], "prune", () => {
  it.each(STORIES)("writes only what the larger image lacks: $format, $name", async (story) => {
    await takePoints(story);
    const { repository } = chain;
    const [full] = chain.points;
    const planned = await prune({ ...pruned, repository, dryRun: true });
    const { merges, writtenBytes } = await prune({ ...pruned, repository });
    expect(merges).toHaveLength(1);
    expect(merges[0]?.base).toBe(planned.merges[0]?.base);
    expect(merges[0]?.base === full?.id ? "the full one" : "an increment").toBe(story.base);
    expect(writtenBytes).toBeLessThan(MiB);
    await expectPoints(repository.path, lastIds(2));
    await expectStock(repository, lastIds(2)[0] ?? "");
    await prune({ ...pruned, repository, retention: { last: 1 } });
    await expectPoints(repository.path, lastIds(1));
  });

  it.each(STORIES.slice(1, 4))(
    "can end at every step: all kept points restore at once, and the next prune completes it: $format, $name",
    async (story) => {
      await takePoints(story);
      const { repository } = chain;
      const kept = lastIds(2);
      const left = await leftByPrune({ ...pruned, repository }, chain.folder);
      expect(left.map(({ step }) => step)).toContain(
        story.format === "raw" ? "patch of vda" : "header of vda",
      );
      await expectCompleted(left, pruned, kept, expectPoints);
    },
  );
});
