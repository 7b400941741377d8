/** Servers that shut down: replies with ESHUTDOWN. */
import { expect, it } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, ERRNO, OPTION, OPTION_ERROR } from "../../src/nbd/wire/constants.js";
import {
  answer,
  chunk,
  dataAt,
  errorPayload,
  greeting,
  handshake,
  MockServer,
  optionReply,
} from "../support/mock-server.js";
import { expectRead, RECONNECT, serve } from "./reconnecting.js";
import { pattern } from "./servers.js";

it("disconnects from a server that is shutting down, and continues with another connection", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    await handshake(peer);
    if (index > 0) return serve(peer);
    const { cookie } = await peer.request();
    peer.send(chunk(cookie, CHUNK.ERROR, errorPayload(ERRNO.ESHUTDOWN, "bye")));
    expect((await peer.request()).command).toBe(COMMAND.DISC);
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await expectRead(client, 0, 4096);
  expect(mock.connections).toBe(2);
});

it("passes on the error of a server that is shutting down if reconnecting is off", async () => {
  await using mock = await MockServer.start(async (peer) => {
    await handshake(peer);
    const { cookie } = await peer.request();
    peer.send(chunk(cookie, CHUNK.ERROR, errorPayload(ERRNO.ESHUTDOWN)));
    await peer.gone();
  });
  await using client = await NbdClient.connect(mock.uri);
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ errno: "ESHUTDOWN" });
  await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
});

it("keeps trying while a server that is about to shut down refuses to open the export", async () => {
  await using mock = await MockServer.start(async (peer, index) => {
    if (index !== 1) {
      await handshake(peer);
      if (index > 1) return serve(peer);
      await peer.request();
      return;
    }
    peer.send(greeting());
    await peer.receive(4);
    while (true) {
      const { option, data } = await peer.option();
      if (option !== OPTION.GO) peer.send(...answer(option, data, {}));
      else peer.send(optionReply(option, OPTION_ERROR.SHUTDOWN));
    }
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await expectRead(client, 0, 512);
  expect(mock.connections).toBe(3);
});

it("opens no new connection until the retiring one has answered", async () => {
  const order: string[] = [];
  await using mock = await MockServer.start(async (peer, index) => {
    order.push(`open ${index}`);
    await handshake(peer);
    if (index > 0) return serve(peer);
    const first = await peer.request();
    const second = await peer.request();
    peer.send(chunk(first.cookie, CHUNK.ERROR, errorPayload(ERRNO.ESHUTDOWN)));
    await new Promise((resolve) => setTimeout(resolve, 30));
    order.push("answer");
    const { cookie, offset, length } = second;
    peer.send(chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, pattern(offset, length))));
    await peer.request();
  });
  await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
  await Promise.all([expectRead(client, 0, 512), expectRead(client, 512, 512)]);
  expect(order).toEqual(["open 0", "answer", "open 1"]);
});

it("waits in close for the answers of a retiring connection", async () => {
  let shutDown = false;
  await using mock = await MockServer.start(async (peer) => {
    await handshake(peer);
    const first = await peer.request();
    const second = await peer.request();
    peer.send(chunk(first.cookie, CHUNK.ERROR, errorPayload(ERRNO.ESHUTDOWN)));
    shutDown = true;
    await new Promise((resolve) => setTimeout(resolve, 30));
    const { cookie, offset, length } = second;
    peer.send(chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, pattern(offset, length))));
    await peer.request();
  });
  const client = await NbdClient.connect(mock.uri);
  let answered = false;
  const refused = client.read(0, Buffer.alloc(512)).catch(() => {});
  const reading = expectRead(client, 512, 512).then(() => {
    answered = true;
  });
  await refused;
  expect([shutDown, answered]).toEqual([true, false]);
  await client.close();
  expect(answered).toBe(true);
  await reading;
});
