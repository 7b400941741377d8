/** A repository with three points of one disk, for tests of what is restored from it. */
import { randomFillSync } from "node:crypto";
import { afterAll, afterEach, beforeAll, beforeEach } from "vitest";
import { MemoryChain } from "./memory-chain.js";

export const CLUSTER = 64 * 1024;
/** Of the disk, in bytes. */
export const SIZE = 96 * CLUSTER + 3 * 512;

/** The points are taken once for all tests of the file. @returns the copy that belongs to the test */
export function withThreePoints(): () => MemoryChain {
  let taken: MemoryChain;
  let chain: MemoryChain;
  beforeAll(async () => {
    taken = await MemoryChain.start(SIZE);
    await takeThree(taken);
  });
  afterAll(async () => {
    await taken[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    chain = await taken.copy();
  });
  afterEach(async () => {
    await chain[Symbol.asyncDispose]();
  });
  return () => chain;
}

/** A full and two increments, with data, zeroes among data, long stretches of zeroes and a ragged end. */
async function takeThree(from: MemoryChain): Promise<void> {
  const { disk } = from;
  disk.write(0, randomFillSync(Buffer.alloc(20 * CLUSTER)));
  disk.write(5 * CLUSTER, Buffer.alloc(2 * CLUSTER));
  disk.write(SIZE - 700, Buffer.alloc(700, 0x12));
  await from.take();
  disk.write(3 * CLUSTER + 512, Buffer.alloc(512, 0x22));
  disk.write(60 * CLUSTER, randomFillSync(Buffer.alloc(17 * CLUSTER)));
  disk.writeZeroes(8 * CLUSTER, 3 * CLUSTER);
  await from.take();
  disk.write(9 * CLUSTER, Buffer.alloc(CLUSTER, 0x33));
  disk.discard(0, CLUSTER);
  disk.write(SIZE - 512, Buffer.alloc(512, 0x34));
  await from.take();
}
