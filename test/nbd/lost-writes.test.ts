/** Writes over connections that are lost, and what a flush confirms of them. */
import { expect, it } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { chunk, dataAt, handshake, MockServer } from "../support/mock-server.js";
import { expectRead, RECONNECT, serve } from "./reconnecting.js";
import { pattern } from "./servers.js";

const WRITABLE = TRANSMISSION.HAS_FLAGS | TRANSMISSION.SEND_FLUSH;

it("repeats a write only if it is marked as idempotent", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { flags: TRANSMISSION.HAS_FLAGS });
    const { cookie, length } = await peer.request();
    await peer.receive(length);
    if (index % 2 === 1) {
      peer.send(chunk(cookie, CHUNK.NONE));
      await peer.request();
    }
  });
  await using once = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await expect(once.write(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
  expect(mock.connections).toBe(1);
  await once.write(0, Buffer.alloc(512), { idempotent: true });
  expect(mock.connections).toBe(2);
});

it("doesn't confirm by a flush the writes over a lost connection", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, {
      flags: TRANSMISSION.HAS_FLAGS | TRANSMISSION.SEND_FLUSH | TRANSMISSION.SEND_FUA,
    });
    while (true) {
      const { command, cookie, offset, length } = await peer.request();
      if (command === COMMAND.DISC) return;
      if (command === COMMAND.WRITE) await peer.receive(length);
      if (command === COMMAND.READ && index === 0) return;
      peer.send(
        command === COMMAND.READ
          ? chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, pattern(offset, length)))
          : chunk(cookie, CHUNK.NONE),
      );
    }
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await client.write(0, Buffer.alloc(512));
  await client.flush();
  await client.write(512, Buffer.alloc(512));
  // The read ends the connection, and is repeated over another one.
  await expectRead(client, 4096, 512);
  const inDoubt = { code: "NBD_WRITES_IN_DOUBT", message: expect.stringContaining("repeat the writes") };
  await expect(client.flush()).rejects.toMatchObject(inDoubt);
  await expect(client.flush()).rejects.toMatchObject(inDoubt);
  await client.write(512, Buffer.alloc(512));
  await client.flush();
});

it("confirms by a flush what needed none on a lost connection", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, {
      flags: TRANSMISSION.HAS_FLAGS | TRANSMISSION.SEND_FLUSH | TRANSMISSION.SEND_FUA,
    });
    if (index > 0) return serve(peer);
    const { cookie, length } = await peer.request();
    await peer.receive(length);
    peer.send(chunk(cookie, CHUNK.NONE));
    await peer.request();
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await client.write(0, Buffer.alloc(512), { fua: true });
  await expectRead(client, 0, 512);
  await client.flush();
});

it("doesn't count an unrelated later write as a repetition of the lost ones", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { flags: WRITABLE });
    while (true) {
      const { command, cookie, length } = await peer.request();
      if (command === COMMAND.DISC || (command === COMMAND.READ && index === 0)) return;
      if (command === COMMAND.WRITE) await peer.receive(length);
      if (command !== COMMAND.READ) peer.send(chunk(cookie, CHUNK.NONE));
      else peer.send(chunk(cookie, CHUNK.OFFSET_DATA, dataAt(0, pattern(0, length))));
    }
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await client.write(0, Buffer.alloc(512));
  await expectRead(client, 0, 512);
  await client.write(512, Buffer.alloc(512));
  await expect(client.flush()).rejects.toMatchObject({ code: "NBD_WRITES_IN_DOUBT" });
});

it("confirms with none of several flushes the writes over a connection that is lost meanwhile", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { flags: WRITABLE });
    let flushes = 0;
    while (true) {
      const { command, cookie, length } = await peer.request();
      if (command === COMMAND.WRITE) await peer.receive(length);
      if (command === COMMAND.FLUSH) flushes += 1;
      if (index === 0 && flushes === 2) return;
      if (index > 0 || flushes === 0) peer.send(chunk(cookie, CHUNK.NONE));
    }
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await client.write(0, Buffer.alloc(512));
  const outcomes = await Promise.allSettled([client.flush(), client.flush()]);
  expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  await expect(client.flush()).rejects.toMatchObject({ code: "NBD_WRITES_IN_DOUBT" });
  await client.write(0, Buffer.alloc(512));
  await client.flush();
});

it("sends unsent writes of a lost connection over a new one", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer, { flags: WRITABLE });
    for (let count = 0; index > 0 || count < 32; count++) {
      const { cookie, length } = await peer.request();
      await peer.receive(length);
      if (index > 0) peer.send(chunk(cookie, CHUNK.NONE));
    }
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  const writes = Array.from({ length: 36 }, (_, index) => client.write(index * 512, Buffer.alloc(512)));
  const outcomes = await Promise.allSettled(writes);
  expect(outcomes.map(({ status }) => status)).toEqual([
    ...new Array<string>(32).fill("rejected"),
    ...new Array<string>(4).fill("fulfilled"),
  ]);
});
