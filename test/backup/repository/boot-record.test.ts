import { writeFile } from "node:fs/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  findBootReads,
  MOST_BOOT_BYTES,
  MOST_BOOT_STRETCHES,
  type NotedReads,
  recordBootReads,
} from "../../../src/backup/repository/boot-record.js";
import { MemoryChain } from "../../support/memory-chain.js";

const MiB = 1024 * 1024;

let chain: MemoryChain;
beforeAll(async () => {
  chain = await MemoryChain.start(MiB);
  for (let number = 0; number < 3; number += 1) await chain.take();
});
afterAll(async () => await chain[Symbol.asyncDispose]());

async function record(number: number, disks: readonly NotedReads[], replaces: boolean): Promise<void> {
  const id = chain.points[number]?.id ?? "";
  await using folder = await chain.repository.holdRecords(MemoryChain.domain, id);
  await recordBootReads(folder, disks, { replaces });
}

async function find(number: number): Promise<unknown> {
  return await findBootReads(chain.repository, MemoryChain.domain, chain.points[number]?.id ?? "");
}

it("is a point's own or else that of the newest other one, and is no part of what is proven", async () => {
  const reads = (offset: number): NotedReads[] => [{ disk: "vda", reads: [{ offset, length: 65_536 }] }];
  expect(await find(2)).toBeUndefined();
  await record(0, reads(0), true);
  expect(await find(2)).toEqual(reads(0));
  await record(1, reads(65_536), true);
  await record(1, reads(0), false);
  expect([await find(2), await find(1), await find(0)]).toEqual([reads(65_536), reads(65_536), reads(0)]);
  await record(1, reads(131_072), true);
  expect(await find(1)).toEqual(reads(131_072));
});

it("is held to its bounds, whoever wrote it, and else passed over", async () => {
  const path = chain.file(2, ".boot-reads.json");
  const whole = { format: "nbdpull-boot-reads", version: 1 };
  const write = async (reads: unknown): Promise<unknown> => {
    await writeFile(path, JSON.stringify({ ...whole, disks: [{ disk: "vda", reads }] }));
    return await find(2);
  };
  // The one beside another point is taken then.
  const other = await find(1);
  for (const odd of [["-1+5"], ["1+"], ["1+1e3"], [`${"9".repeat(16)}+1`], [7], "1+1", null]) {
    expect(await write(odd)).toEqual(other);
  }
  await writeFile(path, '{"format":');
  expect(await find(2)).toEqual(other);
  expect(await write(Array(MOST_BOOT_STRETCHES + 1).fill("0+1"))).toEqual(other);
  const long = [`0+${MOST_BOOT_BYTES}`, "0+1"];
  expect(await write(long)).toEqual([{ disk: "vda", reads: [{ offset: 0, length: MOST_BOOT_BYTES }] }]);
  expect(await write(["999999999999999+999999999"])).toEqual([{ disk: "vda", reads: [] }]);
});
