import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { FRAGMENTED, replying, whole } from "../support/mock-replies.js";
import { chunk, greeting, handshake, MockServer, statusPayload } from "../support/mock-server.js";

const CONTEXT = "base:allocation";
const PIB = 2 ** 50;
const MAP = { contexts: [CONTEXT], size: PIB, flags: FRAGMENTED.flags };

/** Answers each block status with one extent of `length` bytes, after `delayMs`. */
const oneExtent = (length: number, delayMs: number) =>
  replying(async (request) => {
    await sleep(delayMs);
    return chunk(
      request.cookie,
      CHUNK.BLOCK_STATUS,
      statusPayload(1, [length, request.offset % (2 * length)]),
    );
  }, MAP);

/** Sends `bytes` in pieces, each after a pause. */
const dribbling = (pieceBytes: number, pauseMs: number) =>
  replying(async (request, peer) => {
    const bytes = whole(request);
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      peer.send(bytes.subarray(at, at + pieceBytes));
      await sleep(pauseMs);
    }
    return undefined;
  });

async function walk(client: NbdClient): Promise<number> {
  let batches = 0;
  for await (const _ of client.blockStatus()) batches += 1;
  return batches;
}

/** Keeps this process from doing anything, as if it were stopped. */
function block(ms: number): void {
  const until = Date.now() + ms;
  while (Date.now() < until);
}

describe("a server that dawdles", () => {
  it("is given up when it sends a read a byte at a time", async () => {
    await using mock = await dribbling(1, 20);
    await using client = await NbdClient.connect(mock.uri, { minRate: 10_000, minRateMs: 300 });
    const before = Date.now();
    await expect(client.read(0, Buffer.alloc(65_536))).rejects.toMatchObject({
      name: "ConnectionError",
      code: "NBD_TOO_SLOW",
      message: expect.stringContaining("10000 bytes a second"),
    });
    expect(Date.now() - before).toBeGreaterThanOrEqual(295);
    // The whole read would take twenty minutes.
    expect(Date.now() - before).toBeLessThan(60_000);
  });

  it("is not given up if it keeps just above the rate", async () => {
    await using mock = await dribbling(512, 20);
    await using client = await NbdClient.connect(mock.uri, { minRate: 5000, minRateMs: 200 });
    await client.read(0, Buffer.alloc(32_768));
  });

  it("may take its time over single replies that have no payload to measure", async () => {
    await using mock = await replying(
      async (request) => {
        await sleep(150);
        return chunk(request.cookie, CHUNK.NONE);
      },
      { flags: TRANSMISSION.HAS_FLAGS | TRANSMISSION.SEND_FLUSH },
    );
    await using client = await NbdClient.connect(mock.uri, { minRate: 10_000_000, minRateMs: 200 });
    for (let round = 0; round < 5; round += 1) await client.flush();
  });

  it("is not taken for silent while it takes a large write slowly", async () => {
    const length = 2 ** 20;
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { flags: TRANSMISSION.HAS_FLAGS, size: length });
      peer.socket.removeAllListeners("data").pause();
      const taken: Buffer[] = [];
      for (let count = 0; count < 28 + length; ) {
        await sleep(30);
        const bytes = peer.socket.read(Math.min(32_768, peer.socket.readableLength)) as Buffer | null;
        if (bytes !== null) taken.push(bytes);
        count += bytes?.length ?? 0;
      }
      const cookie = Number(Buffer.concat(taken).readBigUInt64BE(8));
      peer.send(chunk(cookie, CHUNK.NONE));
      await sleep(100);
    });
    await using client = await NbdClient.connect(mock.uri, { idleTimeoutMs: 200, minRateMs: 200 });
    const before = Date.now();
    await client.write(0, Buffer.alloc(length));
    expect(Date.now() - before).toBeGreaterThan(400);
  });

  it("is given up when it describes the disk a sector at a time", async () => {
    await using mock = await oneExtent(512, 20);
    await using client = await NbdClient.connect(mock.uri, {
      metaContexts: [CONTEXT],
      ...{ minRate: 200_000, minRateMs: 300 },
    });
    await expect(walk(client)).rejects.toMatchObject({ code: "NBD_TOO_SLOW" });
  });

  it("is given up when it describes large extents without coming to an end", async () => {
    await using mock = await oneExtent(2 ** 20, 20);
    await using client = await NbdClient.connect(mock.uri, { metaContexts: [CONTEXT], mapTimeoutMs: 400 });
    const before = Date.now();
    await expect(walk(client)).rejects.toMatchObject({
      code: "NBD_MAP_TIMEOUT",
      message: expect.stringContaining("offset"),
    });
    // It would be for ever.
    expect(Date.now() - before).toBeLessThan(60_000);
  });

  it("is not blamed for a map that waits behind data of a slow line", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { ...MAP, size: 2 ** 20 });
      const read = await peer.request();
      const status = await peer.request();
      const bytes = whole(read);
      for (let at = 0; at < bytes.length; at += 1024) {
        peer.send(bytes.subarray(at, at + 1024));
        await sleep(20);
      }
      peer.send(chunk(status.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [status.length, 0])));
      await peer.gone();
    });
    const client = await NbdClient.connect(mock.uri, { metaContexts: [CONTEXT], mapTimeoutMs: 400 });
    const reading = client.read(0, Buffer.alloc(65_536));
    expect(await walk(client)).toBe(1);
    await reading;
  });

  it("is refused more extents than were allowed, before they take the memory", async () => {
    let sent = 0;
    await using mock = await replying((request) => {
      if (request.command !== COMMAND.BLOCK_STATUS) return undefined;
      const count = Math.ceil(Math.min(1000, request.length / 65_536));
      const extents = Array.from({ length: count }, (_, index) => [65_536, index % 2] as const);
      sent += extents.length;
      return chunk(request.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, ...extents));
    }, MAP);
    await using client = await NbdClient.connect(mock.uri, { metaContexts: [CONTEXT], maxExtents: 10_000 });
    await expect(walk(client)).rejects.toMatchObject({
      name: "RequestError",
      code: "NBD_TOO_MANY_EXTENTS",
      message: expect.stringContaining("more than 10000 extents"),
    });
    expect(sent).toBeLessThan(40_000);
    await using patient = await NbdClient.connect(mock.uri, { metaContexts: [CONTEXT], maxExtents: 10_000 });
    // The limit is on the disk's fragments, not on the number of replies.
    for await (const { offset } of patient.blockStatus({ length: 5000 * 65_536 })) void offset;
  });

  it("is not given up for the time in which this process was stopped", async () => {
    await using mock = await MockServer.start(async (peer) => {
      peer.send(greeting());
      await peer.gone();
    });
    const late = NbdClient.connect(mock.uri, { connectTimeoutMs: 400 }).catch((error: unknown) => error);
    await sleep(50);
    block(500);
    const resumed = Date.now();
    expect(await late).toMatchObject({ code: "NBD_CONNECT_TIMEOUT" });
    // Three quarters of the time-out were left.
    expect(Date.now() - resumed).toBeGreaterThanOrEqual(250);

    await using slow = await replying(async (request) => {
      await sleep(100);
      return whole(request);
    });
    await using client = await NbdClient.connect(slow.uri, { minRate: 1_000_000, minRateMs: 200 });
    const reading = client.read(0, Buffer.alloc(512));
    await sleep(10);
    block(600);
    await reading;
  });
});
