import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import type { Extent } from "../../../src/backup/base/extent.js";
import { copyImage, type DiskSource } from "../../../src/backup/pull/pull-image.js";
import { RestoreSource } from "../../../src/backup/restore/restore-source.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { scratch } from "../image/support.js";

const CLUSTER = 64 * 1024;

function expectRising(positions: readonly number[], last: number): void {
  expect(positions.length).toBeGreaterThan(1);
  expect(positions).toEqual([...positions].sort((a, b) => a - b));
  expect(positions.at(-1)).toBe(last);
}

it("the position of a pull never falls, though its first segment ends last", async () => {
  const virtualSize = 16 * CLUSTER;
  async function* extents(): AsyncGenerator<readonly Extent[]> {
    yield [{ offset: 0, length: virtualSize, state: "data" }];
  }
  const source: DiskSource = {
    virtualSize,
    complete: true,
    readThrough: 0,
    requests: 0,
    begin: () => ({
      extents: extents(),
      bytes: {
        readPieces: async (stretches, sink) => {
          await sleep(stretches[0]?.offset === 0 ? 400 : 5);
          for (const { offset, length } of stretches) sink.data(offset, new Uint8Array(length).fill(1));
        },
      },
    }),
    widen: () => undefined,
  };
  const positions: number[] = [];
  await copyImage(source, {
    imagePath: (await scratch())("disk.raw"),
    format: "raw",
    sync: false,
    window: { inFlight: 4 * CLUSTER, requestSize: CLUSTER },
    onProgress: ({ position }) => positions.push(position),
  });
  expectRising(positions, virtualSize);
});

it("nor does that of a restore", async () => {
  await using chain = await MemoryChain.start(16 * CLUSTER);
  chain.disk.write(0, Buffer.alloc(16 * CLUSTER, 1));
  const { manifest } = await chain.take();
  const positions: number[] = [];
  await using source = await RestoreSource.open({
    repository: chain.repository,
    domain: MemoryChain.domain,
    point: manifest,
    disk: "vda",
    onProgress: ({ position }) => positions.push(position),
  });
  const { onSegment } = source.begin();
  for (const cluster of [15, 0]) {
    const runs = [{ kind: "data", cluster, count: 1 } as const];
    onSegment?.({ readBytes: CLUSTER, segment: { index: cluster, runs, firstRank: cluster, clusters: 1 } });
    await sleep(110);
  }
  expectRising(positions, 16 * CLUSTER);
});
