import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { openExport } from "../../../src/backup/export/open-export.js";
import { TRANSMISSION } from "../../../src/nbd/wire/constants.js";
import { serveDisk } from "../../support/mock-disk.js";
import { COMMON_FLAGS } from "../../support/mock-server.js";

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
