/** What is zero in clusters of a raw image that are defined in part, in a file and in a store. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import type { ReadableFile } from "../../../src/backup/image/readable-file.js";
import { VerifyService } from "../../../src/backup/verify/verify-service.js";
import { makeFolder } from "../../nbd/servers.js";

const CLUSTER = 64 * 1024;
const SUBCLUSTER = CLUSTER / 32;
const geometry = { virtualSize: 3 * CLUSTER + 512, clusterSize: CLUSTER };

it.each(["file", "store"] as const)("is compared as whole clusters of zeroes are: in a %s", async (where) => {
  // Full of bytes where nothing is defined, which nobody looks at.
  const bytes = Buffer.alloc(geometry.virtualSize, 0xaa);
  const partial = { kind: "partial" as const, count: 1 as const };
  const runs = [
    { ...partial, cluster: 0, hostOffset: 0, dataMask: 0b1, zeroMask: 0b0110 },
    { ...partial, cluster: 1, hostOffset: 0, dataMask: 0, zeroMask: 0b1001 },
    { ...partial, cluster: 3, hostOffset: 0, dataMask: 0, zeroMask: 0b11 },
  ];
  const zeroes = [
    { guestOffset: SUBCLUSTER, length: 2 * SUBCLUSTER },
    { guestOffset: CLUSTER, length: SUBCLUSTER },
    { guestOffset: CLUSTER + 3 * SUBCLUSTER, length: SUBCLUSTER },
    { guestOffset: 3 * CLUSTER, length: 512 },
  ];
  for (const { guestOffset, length } of zeroes) bytes.fill(0, guestOffset, guestOffset + length);
  await using folder = await makeFolder();
  const path = where === "file" ? join(folder.path, "vda.raw") : "s3://bucket/vda.raw";
  const read = (target: Uint8Array, position: number): number => bytes.copy(target, 0, position);
  const file: ReadableFile = {
    path,
    size: async () => bytes.length,
    read: async (target, position) => read(target, position),
    fill: async (target, position) => void read(target, position),
    close: async () => undefined,
  };
  const remote = where === "store" ? { path, open: async () => file } : undefined;
  const image = { path, remote, format: "raw" as const, geometry, algorithm: undefined };
  const found = async () => {
    if (where === "file") await writeFile(path, bytes);
    const service = new VerifyService();
    try {
      return await service.answer({ image, runs, digests: new Uint8Array() });
    } finally {
      await service.close();
    }
  };
  expect(await found()).toEqual([]);
  for (const { guestOffset, length } of zeroes) bytes.writeUInt8(1, guestOffset + length - 1);
  const message = "there is data where the point has zeroes";
  expect(await found()).toEqual(zeroes.map((zero) => ({ message, ...zero })));
});
