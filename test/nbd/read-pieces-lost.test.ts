import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, ERRNO, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { whole } from "../support/mock-replies.js";
import { COMMON_FLAGS, chunk, errorPayload, handshake, MockServer } from "../support/mock-server.js";
import { PieceCollector } from "../support/piece-collector.js";
import { RECONNECT, serve } from "./reconnecting.js";
import { pattern } from "./servers.js";

const SIZE = 1024 * 1024;

async function expectGood(client: NbdClient, offset = 0, length = 8192): Promise<void> {
  const sink = new PieceCollector(SIZE);
  await client.readPieces([{ offset, length }], sink);
  expect(sink.fault({ offset, length })).toBeUndefined();
  expect(sink.bytes.subarray(offset, offset + length).equals(pattern(offset, length))).toBe(true);
}

describe("a read in pieces whose connection is lost in the middle", () => {
  /** The first time, hangs up in the middle of the second of two replies. */
  const hangingUp = (flags: number = COMMON_FLAGS) =>
    MockServer.start(async (peer, index) => {
      await handshake(peer, { flags });
      if (index > 0) return serve(peer);
      const [first, second] = [await peer.request(), await peer.request()];
      peer.send(whole(first), whole(second).subarray(0, 30_000));
    });
  const stretches = [0, 204_800].map((offset) => ({ offset, length: 100_352 }));

  it("is repeated over a new one, and delivers all bytes again", async () => {
    await using mock = await hangingUp();
    await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
    const sink = new PieceCollector(SIZE);
    await client.readPieces(stretches, sink);
    for (const { offset, length } of stretches) {
      expect(sink.bytes.subarray(offset, offset + length).equals(pattern(offset, length))).toBe(true);
    }
    expect(sink.counts.subarray(0, 100_352).every((count) => count === 1)).toBe(true);
    expect(sink.counts[204_800]).toBe(2);
    expect(mock.connections).toBe(2);
  });

  it("fails if reconnecting is off, and delivers nothing after that", async () => {
    await using mock = await hangingUp();
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(SIZE);
    await expect(client.readPieces(stretches, sink)).rejects.toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
    await expect(client.readPieces(stretches, sink)).rejects.toMatchObject({ name: "ConnectionError" });
    const { length } = sink.taken;
    await sleep(20);
    expect(sink.taken).toHaveLength(length);
  });

  it("gives up after the allowed number of attempts", async () => {
    let asked = 0;
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      await peer.request();
      asked += 1;
    });
    await using client = await NbdClient.connect(mock.uri, { reconnect: { ...RECONNECT, attempts: 2 } });
    const reading = client.readPieces([{ offset: 0, length: 4096 }], new PieceCollector(SIZE));
    await expect(reading).rejects.toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
    // Sent again at most twice.
    expect(asked).toBe(3);
  });

  it("sends nothing more to a server that is shutting down", async () => {
    const asked: number[] = [];
    await using mock = await MockServer.start(async (peer, index) => {
      await handshake(peer, { flags: COMMON_FLAGS | TRANSMISSION.CAN_MULTI_CONN });
      while (true) {
        const request = await peer.request();
        if (request.command === COMMAND.DISC) return;
        asked.push(index);
        peer.send(
          index === 0 ? chunk(request.cookie, CHUNK.ERROR, errorPayload(ERRNO.ESHUTDOWN)) : whole(request),
        );
      }
    });
    await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
    await expectGood(client);
    expect(asked).toEqual([0, 1]);
  });
});
