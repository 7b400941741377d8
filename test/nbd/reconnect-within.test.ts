/** `reconnect.withinMs`: patience by time, of a client that wants the server it had and exact reads. */
import { rename } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { NbdClient, type NbdEvent, type ReconnectOptions } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, ERRNO, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { data, end, FRAGMENTED, hole, whole } from "../support/mock-replies.js";
import {
  chunk,
  errorPayload,
  handshake,
  MockServer,
  type TransmissionRequest,
} from "../support/mock-server.js";
import { PieceCollector } from "../support/piece-collector.js";
import { serve } from "./reconnecting.js";
import { pattern } from "./servers.js";

const MiB = 1024 * 1024;
const PATIENT = { withinMs: 10_000, delayMs: 1, maxDelayMs: 5 };

async function readsTruth(client: NbdClient, length: number, offset = 0): Promise<void> {
  const sink = new PieceCollector(MiB);
  await client.readPieces([{ offset, length }], sink);
  expect(sink.bytes.subarray(offset, offset + length).equals(pattern(offset, length))).toBe(true);
}

it("gives a read up that ends the connection each time, though others succeed", async () => {
  await using mock = await MockServer.start(async (peer) => {
    await handshake(peer, FRAGMENTED);
    while (true) {
      const request = await peer.request();
      if (request.command === COMMAND.DISC || request.offset === 0) return;
      peer.send(whole(request));
    }
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: { ...PATIENT, withinMs: 60_000 } });
  let isOver = false;
  const others = (async (): Promise<void> => {
    while (!isOver) await client.read(64 * 1024, Buffer.alloc(512)).catch(() => undefined);
  })();
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({
    code: expect.stringMatching(/^NBD_/),
  });
  isOver = true;
  await others;
});

describe("a read whose connection is cut", () => {
  const LENGTH = 4096;
  /** Two stretches of data around a stretch that the server first calls a hole, and then takes that back. */
  const doubtful = (request: TransmissionRequest): Buffer =>
    Buffer.concat([
      data(request, 2048, 4096),
      hole(request, 0, 1024),
      data(request, 1024, 2048),
      chunk(request.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO)),
    ]);
  const honest = (request: TransmissionRequest): Buffer =>
    Buffer.concat([data(request, 1024, 4096), data(request, 0, 1024), end(request)]);

  it("after any byte of its reply has the bytes of a complete one", async () => {
    const total = doubtful({ flags: 0, command: 0, cookie: 0, offset: 0, length: LENGTH }).length - 26;
    // Within the first header everywhere, and then all over headers and payloads.
    const cuts = Array.from({ length: total }, (_, at) => at).filter((at) => at < 30 || at % 53 === 0);
    let at = 0;
    await using mock = await MockServer.start(async (peer, index) => {
      await handshake(peer, FRAGMENTED);
      if (index % 2 === 1) return serve(peer, honest);
      const request = await peer.request();
      peer.send(doubtful(request).subarray(0, at));
    });
    for (at of cuts) {
      await using pieces = await NbdClient.connect(mock.uri, { reconnect: PATIENT });
      await readsTruth(pieces, LENGTH);
      await using buffer = await NbdClient.connect(mock.uri, { reconnect: PATIENT });
      const target = Buffer.alloc(LENGTH);
      await buffer.read(0, target);
      expect(target.equals(pattern(0, LENGTH))).toBe(true);
    }
    expect(mock.connections).toBe(4 * cuts.length);
  }, 60_000);

  it("comes through a line that breaks long before a whole reply, each time", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      for (let left = 100_000; left > 0; ) {
        const reply = whole(await peer.request());
        peer.send(reply.subarray(0, left));
        left -= reply.length;
      }
    });
    await using client = await NbdClient.connect(mock.uri, { reconnect: PATIENT });
    await readsTruth(client, MiB);
    const target = Buffer.alloc(MiB);
    await client.read(0, target);
    expect(target.equals(pattern(0, MiB))).toBe(true);
  });
});

describe("patience", () => {
  async function events(uri: string, reconnect: ReconnectOptions, use: (client: NbdClient) => Promise<void>) {
    const told: NbdEvent[] = [];
    await using client = await NbdClient.connect(uri, { reconnect, onEvent: (event) => told.push(event) });
    await use(client);
    return told;
  }

  it("lasts for the time that was given, and then names the loss and the last failure", async () => {
    await using mock = await MockServer.start(async (peer, index) => {
      if (index > 0) return;
      await handshake(peer);
      await peer.request();
    });
    const began = performance.now();
    const told = await events(mock.uri, { ...PATIENT, withinMs: 300 }, async (client) => {
      await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({
        code: "NBD_CLOSED_BY_SERVER",
        message: expect.stringMatching(/closed the connection, and no answer came within .* after that: /),
      });
      // Who comes later doesn't begin anew.
      await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
    });
    expect(performance.now() - began).toBeGreaterThan(290);
    expect(performance.now() - began).toBeLessThan(60_000);
    expect(told.filter(({ type }) => type === "waiting")).toHaveLength(1);
    expect(told.some(({ type }) => type === "back")).toBe(false);
  });

  it("ends with a server that takes every connection and answers nothing, and doesn't besiege it", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { flags: FRAGMENTED.flags | TRANSMISSION.CAN_MULTI_CONN });
      await peer.request();
    });
    const patience = { withinMs: 400, delayMs: 10, maxDelayMs: 100 };
    await using client = await NbdClient.connect(mock.uri, { connections: 4, reconnect: patience });
    const sink = new PieceCollector(MiB);
    await expect(client.readPieces([{ offset: 0, length: MiB }], sink)).rejects.toMatchObject({
      code: "NBD_CLOSED_BY_SERVER",
    });
    expect(mock.connections).toBeLessThan(40);
  });

  it("ends with a server that only ever shuts down", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      await serve(peer, ({ cookie }) => chunk(cookie, CHUNK.ERROR, errorPayload(ERRNO.ESHUTDOWN)));
    });
    await using client = await NbdClient.connect(mock.uri, { reconnect: { ...PATIENT, withinMs: 200 } });
    await expect(client.read(0, Buffer.alloc(512))).rejects.toThrow();
    expect(mock.connections).toBeLessThan(200);
  });

  it("is not for ever with a server that stays below the least rate", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      peer.send(whole(await peer.request()));
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri, {
      ...{ idleTimeoutMs: 60, minRate: 100_000, minRateMs: 60 },
      reconnect: PATIENT,
    });
    // Reads of one sector each: the server answers one on each connection, and then is silent.
    const many = async (): Promise<void> => {
      for (let at = 0; ; at += 512) await client.read(at % MiB, Buffer.alloc(512));
    };
    await expect(many()).rejects.toMatchObject({
      code: expect.stringMatching(/NBD_IDLE_TIMEOUT|NBD_TOO_SLOW/),
    });
  });

  it("ends at once by its signal, though the read has none", async () => {
    await using mock = await MockServer.start(async (peer, index) => {
      if (index > 0) return peer.gone();
      await handshake(peer);
      await peer.request();
    });
    const controller = new AbortController();
    const reconnect = { ...PATIENT, signal: controller.signal };
    await using client = await NbdClient.connect(mock.uri, { reconnect });
    const reading = client.read(0, Buffer.alloc(512));
    await expect.poll(() => mock.connections).toBe(2);
    controller.abort(new Error("the guest has ended"));
    await expect(reading).rejects.toMatchObject({ code: "NBD_ABORTED", cause: controller.signal.reason });
  });

  it("prepares the way before each attempt, and a failure of that is one to connect", async () => {
    await using mock = await MockServer.start(async (peer, index) => {
      await handshake(peer);
      if (index > 0) return serve(peer);
      await peer.request();
    });
    let asked = 0;
    const prepare = async (): Promise<void> => {
      asked += 1;
      if (asked < 3) throw new Error("the tunnel is down");
    };
    const told = await events(mock.uri, { ...PATIENT, prepare }, (client) => readsTruth(client, 4096));
    expect(asked).toBe(3);
    expect(told.map(({ type }) => type).filter((type) => type !== "lost")).toEqual([
      ...["opened", "waiting", "reconnect-failed", "reconnect-failed", "opened", "back"],
    ]);
  });
});

describe("a client that wants the same server", () => {
  const dropping = () =>
    MockServer.start(async (peer, index) => {
      await handshake(peer);
      if (index > 0) return serve(peer);
      await peer.request();
    });
  const SAME = { ...PATIENT, sameServer: true };

  it("goes on with one that lives", async () => {
    await using mock = await dropping();
    await using client = await NbdClient.connect(mock.uri, { reconnect: SAME });
    await readsTruth(client, 4096);
  });

  it("doesn't wait for a Unix socket that is gone", async () => {
    await using mock = await dropping();
    await using client = await NbdClient.connect(mock.uri, { reconnect: SAME });
    await rename(mock.socketPath, `${mock.socketPath}.away`);
    const began = performance.now();
    await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({
      code: "NBD_CLOSED_BY_SERVER",
      message: expect.stringMatching(/the connection can't be made again: .*ENOENT/),
    });
    // It would be waited for for ten seconds.
    expect(performance.now() - began).toBeLessThan(9000);
  });

  it("refuses another one on a socket that was made anew", async () => {
    await using mock = await dropping();
    await using other = await MockServer.start(async (peer) => {
      await handshake(peer);
      await serve(peer);
    });
    await using client = await NbdClient.connect(mock.uri, { reconnect: SAME });
    await rename(other.socketPath, mock.socketPath);
    await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({
      code: "NBD_EXPORT_CHANGED",
      message: expect.stringContaining("was made anew"),
    });
  });
});
