import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { NbdClient, type NbdEvent } from "../../src/nbd/index.js";
import { COMMAND, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { whole } from "../support/mock-replies.js";
import { COMMON_FLAGS, handshake, MockServer } from "../support/mock-server.js";
import { RECONNECT, serve } from "./reconnecting.js";
import { pattern } from "./servers.js";

const MULTI = COMMON_FLAGS | TRANSMISSION.CAN_MULTI_CONN;

function serving(flags: number, used: Set<number> = new Set()): Promise<MockServer> {
  return MockServer.start(async (peer, index) => {
    await handshake(peer, { flags });
    await serve(peer, (read) => {
      used.add(index);
      return whole(read);
    });
  });
}

async function readAll(client: NbdClient): Promise<void> {
  const targets = Array.from({ length: 24 }, () => Buffer.alloc(4096));
  await Promise.all(targets.map((target, at) => client.read(at * 4096, target)));
  for (const [at, target] of targets.entries()) expect(target.equals(pattern(at * 4096, 4096))).toBe(true);
}

describe("a client that gets more connections", () => {
  it("opens the missing ones in the background, and uses them", async () => {
    const used = new Set<number>();
    await using mock = await serving(MULTI, used);
    await using client = await NbdClient.connect(mock.uri);
    client.widen(4);
    expect(client.connections).toBe(1);
    await expect.poll(() => client.connections).toBe(4);
    await readAll(client);
    expect([used.size, mock.connections]).toEqual([4, 4]);
  });

  it("doesn't open twice what is being opened, however often it is asked", async () => {
    await using mock = await serving(MULTI);
    await using client = await NbdClient.connect(mock.uri, { connections: 2 });
    for (let at = 0; at < 10; at += 1) client.widen(3);
    client.widen(4);
    await expect.poll(() => client.connections).toBe(4);
    await sleep(20);
    client.widen(4);
    await sleep(20);
    expect([client.connections, mock.connections]).toEqual([4, 4]);
  });

  it("never gets fewer connections", async () => {
    await using mock = await serving(MULTI);
    await using client = await NbdClient.connect(mock.uri, { connections: 3 });
    await expect.poll(() => client.connections).toBe(3);
    for (const connections of [1, 0, -1, Number.NaN]) client.widen(connections);
    await sleep(20);
    expect([client.connections, mock.connections]).toEqual([3, 3]);
  });

  it("keeps to one connection if the server allows no more", async () => {
    await using mock = await serving(COMMON_FLAGS);
    await using client = await NbdClient.connect(mock.uri);
    client.widen(4);
    await sleep(20);
    await readAll(client);
    expect([client.connections, mock.connections]).toEqual([1, 1]);
  });

  it("works without connections that can't be opened, and tries each only once", async () => {
    const events: NbdEvent[] = [];
    await using mock = await MockServer.start(async (peer, index) => {
      if (index > 1) return;
      await handshake(peer, { flags: MULTI });
      await serve(peer);
    });
    const onEvent = (event: NbdEvent) => events.push(event);
    await using client = await NbdClient.connect(mock.uri, { onEvent });
    client.widen(4);
    await expect.poll(() => events.map(({ type }) => type)).toHaveLength(4);
    for (let at = 0; at < 5; at += 1) client.widen(4);
    await readAll(client);
    await sleep(20);
    expect(events.map(({ type }) => type).sort()).toEqual(["not-opened", "not-opened", "opened", "opened"]);
    expect([client.connections, mock.connections]).toEqual([2, 4]);
  });

  it("has lost connections replaced up to the new number", async () => {
    await using mock = await MockServer.start(async (peer, index) => {
      await handshake(peer, { flags: MULTI });
      if (index === 1) await peer.request();
      else await serve(peer);
    });
    const reconnect = { attempts: 3, delayMs: 1, maxDelayMs: 5 };
    await using client = await NbdClient.connect(mock.uri, { reconnect });
    client.widen(3);
    await expect.poll(() => client.connections).toBe(3);
    await readAll(client);
    await expect.poll(() => client.connections).toBe(3);
    expect(mock.connections).toBe(4);
  });

  it("opens none beside the one that a request opens because all were lost", async () => {
    let most = 0;
    let here = 0;
    let meet: (() => void) | undefined;
    await using mock = await MockServer.start(async (peer, index) => {
      if (index === 1) {
        await new Promise<void>((resolve) => {
          meet = resolve;
        });
      }
      await handshake(peer, { flags: MULTI });
      here += 1;
      most = Math.max(most, here);
      try {
        if (index === 0) await peer.request();
        else await serve(peer);
      } finally {
        here -= 1;
      }
    });
    await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
    const reading = readAll(client);
    await expect.poll(() => meet).toBeDefined();
    expect(client.connections).toBe(0);
    client.widen(2);
    await sleep(20);
    expect(mock.connections).toBe(2);
    meet?.();
    await reading;
    await expect.poll(() => client.connections).toBe(2);
    await sleep(20);
    expect([client.connections, mock.connections, most]).toEqual([2, 3, 2]);
  });

  it("waits for a handshake that has begun when it is closed, and says goodbye", async () => {
    let meet: (() => void) | undefined;
    const ends: unknown[] = [];
    await using mock = await MockServer.start(async (peer, index) => {
      if (index === 1) {
        await new Promise<void>((resolve) => {
          meet = resolve;
        });
      }
      await handshake(peer, { flags: MULTI });
      ends.push((await peer.request()).command);
    });
    const client = await NbdClient.connect(mock.uri);
    client.widen(2);
    await expect.poll(() => meet).toBeDefined();
    const closing = client.close();
    await sleep(20);
    meet?.();
    await closing;
    await expect.poll(() => ends).toEqual([COMMAND.DISC, COMMAND.DISC]);
  });

  it("hangs up when it is closed in a handshake that doesn't end", async () => {
    let left = false;
    let met = false;
    await using mock = await MockServer.start(async (peer, index) => {
      if (index === 0) return await handshake(peer, { flags: MULTI }).then(() => serve(peer));
      met = true;
      await peer.gone();
      left = true;
    });
    const client = await NbdClient.connect(mock.uri);
    client.widen(2);
    await expect.poll(() => met).toBe(true);
    await client.close();
    await expect.poll(() => left).toBe(true);
  });

  it("also closes connections that are being opened, and opens none after it is closed", async () => {
    await using mock = await serving(MULTI);
    const client = await NbdClient.connect(mock.uri);
    client.widen(4);
    await client.close();
    await sleep(20);
    const { connections } = mock;
    client.widen(8);
    await sleep(20);
    expect([client.connections, mock.connections]).toEqual([0, connections]);
  });
});
