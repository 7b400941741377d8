import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { openExport } from "../../../src/backup/export/open-export.js";
import { CHUNK, COMMAND, ERRNO, TRANSMISSION } from "../../../src/nbd/wire/constants.js";
import { serveDisk } from "../../support/mock-disk.js";
import { COMMON_FLAGS, chunk, errorPayload } from "../../support/mock-server.js";

const DISK = {
  content: Buffer.alloc(65_536),
  facts: { flags: COMMON_FLAGS | TRANSMISSION.CAN_MULTI_CONN },
};

it("opens the second connection at once: a job may be ended later, and must not meet a handshake", async () => {
  await using server = await serveDisk(DISK);
  await using client = await openExport(server.uri, undefined, {});
  await expect.poll(() => client.connections).toBe(2);
});

it("opens one connection where the pull opens more, or as many as are asked for", async () => {
  await using server = await serveDisk(DISK);
  await using one = await openExport(server.uri, undefined, { widensLater: true });
  await using three = await openExport(server.uri, undefined, { connections: 3 });
  await expect.poll(() => three.connections).toBe(3);
  await sleep(50);
  expect([one.connections, three.connections, server.connections]).toEqual([1, 3, 4]);
});

const MiB = 1024 * 1024;
const UNIT = 32 * MiB;
const ALLOCATION = "base:allocation";
const DIRTY = "qemu:dirty-bitmap:b";

/**
 * Opens an export whose units are dirty (1) or clean (0).
 * @param refusesClean whether block status of blocks of 2 MiB fails in which nothing is dirty
 * @param unit bytes of each, at most such a block
 */
async function openDirty(dirty: readonly number[], refusesClean: boolean, unit = UNIT) {
  const asked: [number, number][] = [];
  await using server = await serveDisk({
    content: Buffer.alloc(0),
    facts: { size: dirty.length * unit, flags: COMMON_FLAGS },
    contexts: [
      { name: DIRTY, unit, flags: dirty },
      { name: ALLOCATION, unit, flags: dirty.map(() => 0) },
    ],
    onRequest: ({ command, cookie, offset, length }, answer, peer) => {
      if (command !== COMMAND.BLOCK_STATUS) return answer();
      asked.push([offset / MiB, length / MiB]);
      const units = dirty.slice(offset / unit, (offset + length) / unit);
      const inBlock = Math.max(1, (2 * MiB) / unit);
      const isClean = units.some((_, i) => i % inBlock === 0 && !units.slice(i, i + inBlock).includes(1));
      if (refusesClean && isClean) peer.send(chunk(cookie, CHUNK.ERROR, errorPayload(ERRNO.EINVAL)));
      else answer();
    },
  });
  await using client = await openExport(server.uri, "b", {});
  return { asked, contexts: client.export.contexts };
}

it("looks at the beginning of the map only, if a byte is clean there: the pull asks for all of it", async () => {
  const { asked, contexts } = await openDirty([1, 0, ...new Array<number>(14).fill(1)], false);
  expect(asked).toEqual([[0, 64]]);
  expect(contexts).toEqual([DIRTY, ALLOCATION]);
});

it("looks at the rest of the map if nothing is clean at its beginning", async () => {
  const { asked, contexts } = await openDirty(new Array<number>(16).fill(1), false);
  expect(asked[0]).toEqual([0, 64]);
  expect(asked.slice(1).reduce((sum, [, length]) => sum + length, 0)).toBe(512 - 64);
  expect(contexts).toEqual([DIRTY, ALLOCATION]);
});

it.each([
  ["at the beginning", [1, 0, 1, 1, 1, 1, 1, 1]],
  ["in the middle", [1, 1, 1, 1, 1, 0, 1, 1]],
  ["at the end", [1, 1, 1, 1, 1, 1, 1, 0]],
])("asks for the bitmap alone if the map of clean bytes is refused %s", async (_, dirty) => {
  expect((await openDirty(dirty, true)).contexts).toEqual([DIRTY]);
});

/** A clean byte in each block of 2 MiB of the first 64 MiB, and none dirty behind them. */
const TOUCHED = Array.from({ length: 256 }, (_, unit) => (unit < 128 && unit % 4 === 1 ? 1 : 0));

it("asks for the bitmap alone if blocks without a dirty byte are refused, and clean bytes are not", async () => {
  expect((await openDirty(TOUCHED, true, MiB / 2)).contexts).toEqual([DIRTY]);
});

it("looks further where clean bytes are mapped, and no clean block at the beginning", async () => {
  const { asked, contexts } = await openDirty(TOUCHED, false, MiB / 2);
  expect(asked[0]).toEqual([0, 64]);
  expect(asked.length).toBeGreaterThan(1);
  expect(contexts).toEqual([DIRTY, ALLOCATION]);
});
