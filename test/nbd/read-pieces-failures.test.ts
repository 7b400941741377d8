import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { ConnectionError, NbdClient } from "../../src/nbd/index.js";
import { CHUNK, ERRNO } from "../../src/nbd/wire/constants.js";
import { data, end, FRAGMENTED, hole, type Reply, replying, whole } from "../support/mock-replies.js";
import { COMMON_FLAGS, chunk, errorPayload, simpleReply, u64 } from "../support/mock-server.js";
import { PieceCollector } from "../support/piece-collector.js";
import { WRONG, WRONG_REPLIES } from "../support/wrong-replies.js";
import { RECONNECT } from "./reconnecting.js";
import { pattern } from "./servers.js";

const SIZE = 1024 * 1024;

async function expectGood(client: NbdClient, offset = 0, length = 8192): Promise<void> {
  const sink = new PieceCollector(SIZE);
  await client.readPieces([{ offset, length }], sink);
  expect(sink.fault({ offset, length })).toBeUndefined();
  expect(sink.bytes.subarray(offset, offset + length).equals(pattern(offset, length))).toBe(true);
}

describe("a read in pieces is refused, and the connection ended, for", () => {
  it.each(WRONG_REPLIES)("%s", async (_title, reply, facts = FRAGMENTED) => {
    await using mock = await replying(reply, { ...facts });
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(SIZE);
    const stretch = { offset: 8192, length: 4096 };
    await expect(client.readPieces([stretch], sink)).rejects.toMatchObject(WRONG);
    expect(client.connections).toBe(0);
    // What was delivered before the fault showed must be within the request, and without duplicates.
    for (const [at, count] of sink.counts.entries()) {
      if (count > (at >= 8192 && at < 12_288 ? 1 : 0)) throw new Error(`byte ${at} came ${count} times`);
    }
  });

  it("too much in a simple reply", async () => {
    await using mock = await replying((r) => simpleReply(r.cookie, 0, pattern(r.offset, r.length + 16)), {
      protocol: "simple",
    });
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(SIZE);
    await client.readPieces([{ offset: 512, length: 512 }], sink);
    expect(sink.fault({ offset: 512, length: 512 })).toBeUndefined();
    await expect.poll(() => client.connections).toBe(0);
  });
});

describe("a failed read in pieces", () => {
  it.each<[string, Reply, number]>([
    ["delivers nothing", (r) => chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO)), 0],
    [
      "delivers nothing after the error",
      (r) =>
        Buffer.concat([
          data(r, 0, 4096),
          chunk(r.cookie, CHUNK.ERROR_OFFSET, Buffer.concat([errorPayload(5), u64(r.offset)]), false),
          data(r, 4096, 8192),
          hole(r, 8192, 16_384),
          end(r),
        ]),
      4096,
    ],
    [
      "fails although all its data came",
      (r) => Buffer.concat([data(r, 0, 16_384), chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO))]),
      16_384,
    ],
  ])("%s", async (_title, reply, handed) => {
    let count = 0;
    await using mock = await replying((r, peer) => (count++ === 0 ? reply(r, peer) : whole(r)));
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(SIZE);
    await expect(client.readPieces([{ offset: 4096, length: 16_384 }], sink)).rejects.toMatchObject({
      name: "RequestError",
      errno: "EIO",
    });
    expect(sink.taken.reduce((sum, { length }) => sum + length, 0)).toBe(handed);
    await expectGood(client);
  });

  it("fails with the first error after all its stretches have settled", async () => {
    let open = 0;
    await using mock = await replying(async (r, peer) => {
      open += 1;
      if (r.offset === 4096) peer.send(chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.ENOMEM)));
      else
        setTimeout(() => {
          open -= 1;
          peer.send(whole(r));
        }, 20);
      return undefined;
    });
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(SIZE);
    const stretches = [0, 4096, 8192].map((offset) => ({ offset, length: 4096 }));
    await expect(client.readPieces(stretches, sink)).rejects.toMatchObject({ errno: "ENOMEM" });
    expect(open).toBe(1);
    const { length } = sink.taken;
    await sleep(30);
    expect(sink.taken).toHaveLength(length);
  });
});

describe("a sink that throws", () => {
  it.each<[string, Reply, number]>([
    [
      "at data",
      (r) => Buffer.concat([data(r, 0, 4096), data(r, 4096, 8192), hole(r, 8192, r.length, true)]),
      1,
    ],
    ["at the second piece", (r) => Buffer.concat([data(r, 0, 4096), data(r, 4096, r.length, true)]), 2],
    ["at a hole", (r) => Buffer.concat([hole(r, 0, 8192), data(r, 8192, r.length, true)]), 1],
  ])("%s fails its read with its own error, and no other read", async (_title, reply, at) => {
    let count = 0;
    await using mock = await replying((r, peer) => (count++ === 0 ? reply(r, peer) : whole(r)));
    await using client = await NbdClient.connect(mock.uri);
    const full = new Error("no space left");
    const sink = new PieceCollector(SIZE, () => {
      if (sink.taken.length === at) throw full;
    });
    const reading = client.readPieces([{ offset: 0, length: 300_000 }], sink);
    const other = expectGood(client, 512_000, 100_352);
    await expect(reading).rejects.toBe(full);
    await other;
    await expectGood(client);
    expect([sink.taken.length, client.connections]).toEqual([at, 1]);
  });

  it("is not retried, even if it throws a connection error", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri, { reconnect: RECONNECT });
    const lost = new ConnectionError("NBD_CONNECTION_LOST", "the target's connection");
    const sink = new PieceCollector(SIZE, () => {
      throw lost;
    });
    await expect(client.readPieces([{ offset: 0, length: 4096 }], sink)).rejects.toBe(lost);
    expect([client.requests, sink.taken.length]).toEqual([1, 1]);
  });

  it("gets no more pieces of other stretches of the same read", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(SIZE, () => {
      throw new Error("full");
    });
    const stretches = Array.from({ length: 40 }, (_, at) => ({ offset: at * 8192, length: 4096 }));
    await expect(client.readPieces(stretches, sink)).rejects.toThrow("full");
    expect(sink.taken).toHaveLength(1);
  });

  it("gets no more pieces of a stretch that needs several requests", async () => {
    await using mock = await replying(whole, { flags: COMMON_FLAGS, blockSize: [1, 4096, 65_536] });
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(SIZE, () => {
      throw new Error("full");
    });
    await expect(client.readPieces([{ offset: 0, length: SIZE }], sink)).rejects.toThrow("full");
    expect(sink.taken).toHaveLength(1);
  });
});

describe("a read in pieces that is aborted", () => {
  it("in the middle of its payload keeps the connection and other reads", async () => {
    const abort = new AbortController();
    await using mock = await replying(async (r, peer) => {
      if (r.offset !== 0) return whole(r);
      const reply = whole(r);
      peer.send(reply.subarray(0, 20_000));
      abort.abort(new Error("enough"));
      await sleep(10);
      peer.send(reply.subarray(20_000));
      return undefined;
    });
    await using client = await NbdClient.connect(mock.uri);
    const sink = new PieceCollector(SIZE);
    const reading = client.readPieces([{ offset: 0, length: 100_352 }], sink, { signal: abort.signal });
    const others = [expectGood(client, 204_800), expectGood(client, 512_000, 300_032)];
    await expect(reading).rejects.toMatchObject({ code: "NBD_ABORTED" });
    const { length } = sink.taken;
    await Promise.all(others);
    await expectGood(client, 4096);
    expect(sink.taken).toHaveLength(length);
    expect(client.connections).toBe(1);
  });

  it("by its own sink gets no more pieces", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    const abort = new AbortController();
    const sink = new PieceCollector(SIZE, () => abort.abort());
    const stretches = [0, 100_352, 204_800].map((offset) => ({ offset, length: 90_112 }));
    await expect(client.readPieces(stretches, sink, { signal: abort.signal })).rejects.toMatchObject({
      code: "NBD_ABORTED",
    });
    expect(sink.taken).toHaveLength(1);
    await expectGood(client);
    expect(client.connections).toBe(1);
  });

  it("before it begins sends no request", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    const signal = AbortSignal.abort();
    const sink = new PieceCollector(SIZE);
    for (const offset of [0, 100]) {
      const reading = client.readPieces([{ offset, length: 5000 }], sink, { signal });
      await expect(reading).rejects.toMatchObject({ code: "NBD_ABORTED" });
    }
    expect([client.requests, sink.taken.length]).toEqual([0, 0]);
  });
});
