import { expect, it } from "vitest";
import { NbdClient, type NbdEvent } from "../../src/nbd/index.js";
import { CHUNK, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { collect } from "../support/collect.js";
import {
  COMMON_FLAGS,
  chunk,
  dataAt,
  type ExportFacts,
  handshake,
  MockServer,
  statusPayload,
} from "../support/mock-server.js";
import { expectRead, RECONNECT, serve } from "./reconnecting.js";
import { pattern } from "./servers.js";

const MULTI = COMMON_FLAGS | TRANSMISSION.CAN_MULTI_CONN;

it("sends unanswered reads again over a new connection", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer);
    if (index > 0) return serve(peer);
    // Answers one of four requests, and hangs up in the middle of the second answer.
    const requests = [await peer.request(), await peer.request(), await peer.request(), await peer.request()];
    const [first, second] = requests.map(({ cookie, offset, length }) =>
      chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, pattern(offset, length))),
    );
    peer.send(first ?? Buffer.alloc(0), second?.subarray(0, 1000) ?? Buffer.alloc(0));
  });
  const events: NbdEvent[] = [];
  await using client = await NbdClient.connect(mock.uri, {
    reconnect: RECONNECT,
    onEvent: (event) => events.push(event),
  });
  await Promise.all([0, 1, 2, 3].map((index) => expectRead(client, index * 8192, 8192)));
  expect(mock.connections).toBe(2);
  expect(events.map(({ type }) => type)).toEqual(["opened", "lost", "waiting", "opened", "back"]);
});

it("fails the requests of a lost connection if reconnecting is off", async () => {
  await using mock = await MockServer.start(async (peer) => {
    await handshake(peer);
    await peer.request();
  });
  await using client = await NbdClient.connect(mock.uri);
  const failure = { name: "ConnectionError", code: "NBD_CLOSED_BY_SERVER" };
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject(failure);
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject(failure);
  expect(client.connections).toBe(0);
});

it("moves reads to the remaining connections", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { flags: MULTI });
    if (index === 1) await peer.request();
    else await serve(peer);
  });
  await using client = await NbdClient.connect(mock.uri, { connections: 2, reconnect: RECONNECT });
  await expect.poll(() => client.connections).toBe(2);
  await Promise.all(Array.from({ length: 8 }, (_, index) => expectRead(client, index * 512, 512)));
  expect(client.requests).toBeGreaterThanOrEqual(9);
});

it("resumes a walk over the block status", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { size: 2 ** 40, contexts: ["base:allocation"] });
    if (index > 0) return serve(peer);
    for (let answered = 0; answered < 100; answered++) {
      const { cookie, length } = await peer.request();
      peer.send(chunk(cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [length, 0])));
    }
  });
  await using client = await NbdClient.connect(mock.uri, {
    metaContexts: ["base:allocation"],
    reconnect: RECONNECT,
  });
  const batches = await collect(client.blockStatus());
  let position = 0;
  for (const { offset, length } of batches) {
    expect(offset).toBe(position);
    position += length;
  }
  expect(position).toBe(2 ** 40);
  expect(mock.connections).toBe(2);
});

it("refuses an export whose size has changed", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { size: index === 0 ? 4096 : 8192 });
    await peer.request();
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_EXPORT_CHANGED" });
  expect(mock.connections).toBe(2);
});

it("gives up after the allowed number of attempts", async () => {
  const mock = await MockServer.start(async (peer, index) => {
    if (index > 0) return;
    await handshake(peer);
    await peer.request();
  });
  const events: NbdEvent[] = [];
  await using client = await NbdClient.connect(mock.uri, {
    reconnect: RECONNECT,
    onEvent: (event) => events.push(event),
  });
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
  expect(events.filter(({ type }) => type === "reconnect-failed")).toHaveLength(3);
  await mock[Symbol.asyncDispose]();
});

it("does not send a read again for ever if the server dies of it", async () => {
  await using mock = await MockServer.start(async (peer) => {
    await handshake(peer);
    await peer.request();
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
  expect(mock.connections).toBe(4);
});

it("stops waiting for a connection when the caller aborts", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    if (index > 0) return peer.gone();
    await handshake(peer);
    await peer.request();
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  const controller = new AbortController();
  const reading = client.read(0, Buffer.alloc(512), { signal: controller.signal });
  await expect.poll(() => mock.connections).toBe(2);
  controller.abort();
  await expect(reading).rejects.toMatchObject({ code: "NBD_ABORTED" });
});

it("closes while it reconnects", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    if (index > 0) return peer.gone();
    await handshake(peer);
    await peer.request();
  });
  const client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  const reading = client.read(0, Buffer.alloc(512));
  reading.catch(() => {});
  await expect.poll(() => mock.connections).toBe(2);
  await client.close();
  await expect(reading).rejects.toMatchObject({ name: "ConnectionError" });
});

it.each<[string, ExportFacts, RegExp]>([
  ["size", { size: 8192 }, /its size is 8192 instead of 1048576/],
  ["flags", { flags: COMMON_FLAGS | TRANSMISSION.ROTATIONAL }, /its flags are/],
  ["contexts", { contexts: [] }, /its meta contexts are "" instead of "base:allocation"/],
  [
    "block sizes",
    { blockSize: [4096, 4096, 4096] },
    /its block sizes are 4096, 4096 and 4096 instead of not/,
  ],
  ["replies", { protocol: "extended" }, /its replies are extended instead of structured/],
])("refuses an export that comes back with other %s", async (_title, change, message) => {
  const contexts = ["base:allocation"];
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, index === 0 ? { contexts } : { contexts, ...change });
    await peer.request(index > 0 && change.protocol === "extended");
  });
  await using client = await NbdClient.connect(mock.uri, {
    optionalContexts: contexts,
    reconnect: RECONNECT,
  });
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({
    code: "NBD_EXPORT_CHANGED",
    message: expect.stringMatching(message),
  });
});

it("doesn't use an additional connection that shows another export", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { flags: MULTI, size: index === 0 ? 4096 : 8192 });
    await serve(peer);
  });
  const failures: unknown[] = [];
  await using client = await NbdClient.connect(mock.uri, {
    connections: 3,
    onEvent: (event) => event.type === "not-opened" && failures.push(event.error),
  });
  await expect.poll(() => failures.length).toBe(2);
  for (const failure of failures) expect(failure).toMatchObject({ code: "NBD_EXPORT_CHANGED" });
  expect(client.connections).toBe(1);
  await expectRead(client, 0, 4096);
});

it("replaces one of several connections while the others work", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { flags: MULTI });
    if (index === 1) await peer.request();
    else await serve(peer);
  });
  await using client = await NbdClient.connect(mock.uri, { connections: 3, reconnect: RECONNECT });
  await expect.poll(() => client.connections).toBe(3);
  await Promise.all(Array.from({ length: 9 }, (_, index) => expectRead(client, index * 512, 512)));
  await expect.poll(() => client.connections).toBe(3);
  expect(mock.connections).toBe(4);
});

it("does not open connections for ever to a server that hangs up on all but the first", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { flags: MULTI });
    if (index === 0) await serve(peer);
  });
  await using client = await NbdClient.connect(mock.uri, { connections: 2, reconnect: RECONNECT });
  await expect.poll(() => mock.connections).toBe(2);
  await expectRead(client, 0, 512);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(mock.connections).toBe(2);
});

it("leaves no unhandled rejection when an aborted read meets a lost connection", async () => {
  const mock = await MockServer.start(async (peer) => {
    await handshake(peer);
    await peer.request();
  });
  const failures: NbdEvent[] = [];
  await using client = await NbdClient.connect(mock.uri, {
    reconnect: { ...RECONNECT, attempts: 1 },
    onEvent: (event) => failures.push(event),
  });
  await mock[Symbol.asyncDispose]();
  await expect.poll(() => client.connections).toBe(0);
  const signal = AbortSignal.abort();
  await expect(client.read(0, Buffer.alloc(512), { signal })).rejects.toMatchObject({ code: "NBD_ABORTED" });
  // The test runner fails on unhandled rejections.
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(failures.map(({ type }) => type)).toEqual(["opened", "lost"]);
});

it("fails waits for another attempt with their own error when the client closes", async () => {
  const mock = await MockServer.start(async (peer) => {
    await handshake(peer);
    await peer.request();
  });
  const events: NbdEvent[] = [];
  const client = await NbdClient.connect(mock.uri, {
    reconnect: { attempts: 5, delayMs: 60_000, maxDelayMs: 60_000 },
    onEvent: (event) => events.push(event),
  });
  await mock[Symbol.asyncDispose]();
  const reading = client.read(0, Buffer.alloc(512));
  const outcome = reading.catch((error: unknown) => error);
  await expect.poll(() => events.map(({ type }) => type)).toContain("reconnect-failed");
  await client.close();
  expect(await outcome).toMatchObject({ name: "ConnectionError", code: "NBD_CLOSED" });
});
