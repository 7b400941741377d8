import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it, vi } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, COMMAND_FLAG, ERRNO, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { replying, whole } from "../support/mock-replies.js";
import {
  chunk,
  dataAt,
  handshake,
  MockServer,
  simpleReply,
  type TransmissionRequest,
} from "../support/mock-server.js";
import { pattern } from "./servers.js";

describe("requests", () => {
  it.each([
    [-1, 1],
    [0.5, 1],
    [2 ** 20, 1],
    [2 ** 20 - 1, 2],
    [2 ** 53, 1],
    [Number.NaN, 1],
  ])("out of range (%d, %d) are not sent", async (offset, length) => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    await expect(client.read(offset, Buffer.alloc(length))).rejects.toMatchObject({
      name: "RequestError",
      code: "NBD_OUT_OF_RANGE",
    });
    expect(client.requests).toBe(0);
  });

  it("that the export doesn't offer are not sent", async () => {
    await using mock = await replying(whole, { flags: TRANSMISSION.HAS_FLAGS });
    await using client = await NbdClient.connect(mock.uri);
    const refused = { code: "NBD_NOT_OFFERED", errno: "ENOTSUP" };
    await expect(client.flush()).rejects.toMatchObject(refused);
    await expect(client.cache(0, 512)).rejects.toMatchObject(refused);
    await expect(client.trim(0, 512)).rejects.toMatchObject(refused);
    await expect(client.writeZeroes(0, 512)).rejects.toMatchObject(refused);
    await expect(client.write(0, Buffer.alloc(512), { fua: true })).rejects.toMatchObject(refused);
    await expect(client.write(1, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_UNALIGNED" });
    expect(client.requests).toBe(0);
  });

  it("are not sent because of flags that the server marks as invalid", async () => {
    const all = 0xffff & ~TRANSMISSION.HAS_FLAGS;
    await using mock = await replying(whole, { flags: all });
    await using client = await NbdClient.connect(mock.uri);
    expect(client.export).toMatchObject({
      flags: all,
      readOnly: false,
      canDf: false,
      canMultiConn: false,
      canTrim: false,
    });
    await expect(client.trim(0, 512)).rejects.toMatchObject({ code: "NBD_NOT_OFFERED" });
    await client.read(0, Buffer.alloc(512));
  });

  it("carry the requested flags", async () => {
    const seen: [number, number][] = [];
    const flags =
      TRANSMISSION.HAS_FLAGS |
      TRANSMISSION.SEND_FUA |
      TRANSMISSION.SEND_WRITE_ZEROES |
      TRANSMISSION.SEND_FAST_ZERO;
    await using mock = await replying(
      (r) => {
        seen.push([r.command, r.flags]);
        return simpleReply(r.cookie);
      },
      { flags },
    );
    await using client = await NbdClient.connect(mock.uri);
    await client.writeZeroes(0, 512, { fua: true, noHole: true, fastZero: true });
    expect(seen).toEqual([
      [COMMAND.WRITE_ZEROES, COMMAND_FLAG.FUA | COMMAND_FLAG.NO_HOLE | COMMAND_FLAG.FAST_ZERO],
    ]);
  });

  it("are at most thirty-two at once", async () => {
    let open = 0;
    let most = 0;
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      const waiting: TransmissionRequest[] = [];
      setInterval(() => {
        const request = waiting.shift();
        if (request === undefined) return;
        open -= 1;
        peer.send(whole(request));
      }, 1).unref();
      while (true) {
        waiting.push(await peer.request());
        open += 1;
        most = Math.max(most, open);
      }
    });
    await using client = await NbdClient.connect(mock.uri);
    await Promise.all(Array.from({ length: 99 }, (_, index) => client.read(index * 512, Buffer.alloc(512))));
    expect(most).toBe(32);
  });

  it("that fail with their connection all settle", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      for (let count = 0; count < 32; count++) await peer.request();
    });
    await using client = await NbdClient.connect(mock.uri);
    const outcomes = await Promise.allSettled(
      Array.from({ length: 50 }, () => client.read(0, Buffer.alloc(512))),
    );
    for (const outcome of outcomes) {
      expect(outcome).toMatchObject({ status: "rejected", reason: { code: "NBD_CLOSED_BY_SERVER" } });
    }
  });

  it("can share a signal in large numbers without a warning, and all settle when it fires", async () => {
    const warnings: unknown[] = [];
    const onWarning = (warning: unknown) => warnings.push(warning);
    process.on("warning", onWarning);
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    const controller = new AbortController();
    const reads = Array.from({ length: 64 }, () =>
      client.read(0, Buffer.alloc(512), { signal: controller.signal }),
    );
    const outcomes = Promise.allSettled(reads);
    controller.abort(new Error("enough"));
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ reason: { code: "NBD_ABORTED", cause: { message: "enough" } } });
    }
    expect(client.connections).toBe(1);
    await new Promise((resolve) => setTimeout(resolve, 5));
    process.off("warning", onWarning);
    expect(warnings).toEqual([]);
  });

  it("leave no listener on a shared signal", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    const { signal } = new AbortController();
    const add = vi.spyOn(signal, "addEventListener");
    const remove = vi.spyOn(signal, "removeEventListener");
    for (let round = 1; round <= 3; round++) {
      await Promise.all([0, 512, 1024].map((at) => client.read(at, Buffer.alloc(512), { signal })));
      expect(add).toHaveBeenCalledTimes(round);
      expect(remove).toHaveBeenCalledTimes(round);
      expect(remove.mock.lastCall?.[1]).toBe(add.mock.lastCall?.[1]);
    }
  });

  it.each([
    ["fails", ERRNO.EIO],
    ["succeeds", 0],
  ])(
    "to write keep the buffer until it is sent, even if the answer came early: it %s",
    async (_how, error) => {
      let goOn = () => {};
      await using mock = await MockServer.start(async (peer) => {
        await handshake(peer, { flags: TRANSMISSION.HAS_FLAGS });
        const { cookie, length } = await peer.request();
        peer.socket.pause();
        peer.send(simpleReply(cookie, error));
        await new Promise<void>((resolve) => {
          goOn = resolve;
        });
        peer.socket.resume();
        await peer.receive(length);
        await peer.gone();
      });
      await using client = await NbdClient.connect(mock.uri);
      let settled = false;
      const writing = client.write(0, Buffer.alloc(1024 * 1024)).finally(() => {
        settled = true;
      });
      const outcome = Promise.allSettled([writing]);
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(settled).toBe(false);
      goOn();
      expect(await outcome).toMatchObject([
        error === 0 ? { status: "fulfilled" } : { status: "rejected", reason: { errno: "EIO" } },
      ]);
      expect(client.connections).toBe(1);
    },
  );

  it("to cache cover whole blocks", async () => {
    const seen: [number, number][] = [];
    await using mock = await replying(
      (r) => {
        seen.push([r.offset, r.length]);
        return simpleReply(r.cookie);
      },
      { flags: TRANSMISSION.HAS_FLAGS | TRANSMISSION.SEND_CACHE, size: 10_000 },
    );
    await using client = await NbdClient.connect(mock.uri);
    await client.cache(700, 1);
    await client.cache(9_000, 1_000);
    await client.cache(700, 0);
    expect(seen).toEqual([
      [512, 512],
      [8_704, 1_296],
    ]);
    await client.close();
    expect(client.requests).toBe(2);
  });

  it("aborted before their payload began are skipped when the answer comes", async () => {
    const controller = new AbortController();
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      const first = await peer.request();
      const second = await peer.request();
      controller.abort();
      peer.send(whole(first), whole(second));
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    const aborted = Buffer.alloc(100_352, 0xaa);
    const target = Buffer.alloc(512);
    const reading = client.read(0, aborted, { signal: controller.signal });
    await Promise.all([
      expect(reading).rejects.toMatchObject({ code: "NBD_ABORTED" }),
      client.read(512, target),
    ]);
    expect(aborted.equals(Buffer.alloc(100_352, 0xaa))).toBe(true);
    expect(target.equals(pattern(512, 512))).toBe(true);
    expect(client.connections).toBe(1);
    await expect(client.read(0, target, { signal: controller.signal })).rejects.toMatchObject({
      code: "NBD_ABORTED",
    });
  });

  it("aborted in the middle of their payload end the connection, and other requests fail", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      const first = await peer.request();
      await peer.request();
      peer.send(whole(first).subarray(0, 50_000));
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    const controller = new AbortController();
    const target = Buffer.alloc(100_352);
    const reading = client.read(0, target, { signal: controller.signal });
    const other = client.read(0, Buffer.alloc(512));
    const outcomes = Promise.allSettled([reading, other]);
    await expect.poll(() => target.readUInt32BE(4)).toBe(0);
    await expect.poll(() => target.readUInt32BE(12)).toBe(8);
    controller.abort();
    expect(await outcomes).toMatchObject([
      { reason: { code: "NBD_ABORTED" } },
      { reason: { code: "NBD_CONNECTION_LOST" } },
    ]);
  });

  it("aborted while they are being sent end the connection", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { flags: TRANSMISSION.HAS_FLAGS });
      await peer.request();
      // The rest stays in the socket until it is full.
      peer.socket.pause();
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    const controller = new AbortController();
    const writing = client.write(0, Buffer.alloc(1024 * 1024), { signal: controller.signal });
    setTimeout(() => controller.abort(), 30);
    await expect(writing).rejects.toMatchObject({ code: "NBD_ABORTED" });
    expect(client.connections).toBe(0);
  });

  it("that wait for others leave when half of those are answered, together, and none overtakes them", async () => {
    const WINDOW = 32;
    let answeredPart = (): void => undefined;
    const partAnswered = new Promise<void>((resolve) => {
      answeredPart = resolve;
    });
    const offsets: number[] = [];
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      const open: TransmissionRequest[] = [];
      const take = async (): Promise<void> => {
        const request = await peer.request();
        open.push(request);
        offsets.push(request.offset);
      };
      const answer = (): void => {
        const { cookie, offset, length } = open.shift() as TransmissionRequest;
        peer.send(chunk(cookie, CHUNK.OFFSET_DATA, dataAt(offset, pattern(offset, length))));
      };
      while (open.length < WINDOW) await take();
      const next = take();
      while (open.length > WINDOW / 2 + 1) answer();
      await sleep(15);
      answeredPart();
      await sleep(15);
      expect(open).toHaveLength(WINDOW / 2 + 1);
      answer();
      await next;
      while (open.length < WINDOW) await take();
      while (open.length > 0) answer();
      await take();
      answer();
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    const read = async (index: number): Promise<void> => {
      const target = Buffer.alloc(512);
      await client.read(index * 512, target);
      expect(target.equals(pattern(index * 512, 512))).toBe(true);
    };
    const reads = Array.from({ length: 48 }, (_, index) => read(index));
    await partAnswered;
    await Promise.all([...reads, read(48)]);
    expect(offsets).toEqual(Array.from({ length: 49 }, (_, index) => index * 512));
  });
});
