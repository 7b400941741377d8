import { expect, it } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { chunk, dataAt, handshake, MockServer } from "../support/mock-server.js";
import { pattern } from "./servers.js";

const SLOW = 512 * 1024;

it("idle waits for replies to aborted requests too, and leaves the connection open", async () => {
  let answerSlow: (() => void) | undefined;
  await using server = await MockServer.start(async (peer) => {
    await handshake(peer, { flags: TRANSMISSION.HAS_FLAGS | TRANSMISSION.SEND_DF });
    for (;;) {
      const { command, cookie, offset, length } = await peer.request();
      if (command === COMMAND.DISC) return;
      const answer = (): void =>
        peer.send(chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, pattern(offset, length))));
      if (offset < SLOW) answer();
      else answerSlow = answer;
    }
  });
  const client = await NbdClient.connect(server.uri);
  await client.idle();
  const abort = new AbortController();
  const aborted = client.read(SLOW, Buffer.alloc(4096), { signal: abort.signal });
  await expect.poll(() => answerSlow).toBeDefined();
  abort.abort();
  await expect(aborted).rejects.toMatchObject({ code: "NBD_ABORTED" });
  let isIdle = false;
  const idle = client.idle().then(() => {
    isIdle = true;
  });
  // The reply to a second request shows that the first is still waited for, by the order of events.
  await client.read(0, Buffer.alloc(4096));
  expect(isIdle).toBe(false);
  answerSlow?.();
  await idle;
  await client.read(0, Buffer.alloc(4096));
  await client.close();
  await client.idle();
});

it("idle ends with the connection", async () => {
  await using server = await MockServer.start(async (peer) => {
    await handshake(peer, { flags: TRANSMISSION.HAS_FLAGS });
    await peer.request();
  });
  const client = await NbdClient.connect(server.uri);
  const lost = client.read(0, Buffer.alloc(4096)).catch((error: unknown) => error);
  await client.idle();
  expect(await lost).toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
  await client.close();
});

it("idle waits for extra connections that are in their handshake", async () => {
  const flags = TRANSMISSION.HAS_FLAGS | TRANSMISSION.CAN_MULTI_CONN;
  let peers = 0;
  let goOn: (() => void) | undefined;
  await using server = await MockServer.start(async (peer) => {
    peers += 1;
    if (peers > 1) {
      await new Promise<void>((resolve) => {
        goOn = resolve;
      });
    }
    await handshake(peer, { flags });
    await peer.gone();
  });
  const client = await NbdClient.connect(server.uri, { connections: 2 });
  await expect.poll(() => goOn).toBeDefined();
  let isIdle = false;
  const idle = client.idle().then(() => {
    isIdle = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(isIdle).toBe(false);
  goOn?.();
  await idle;
  expect(client.connections).toBe(2);
  await client.close();
});
