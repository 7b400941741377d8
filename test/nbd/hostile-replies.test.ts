import { describe, expect, it } from "vitest";
import { NbdClient, type StatusBatch } from "../../src/nbd/index.js";
import { CHUNK, COMMAND, COMMAND_FLAG, ERRNO, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import { collect } from "../support/collect.js";
import {
  COMMON_FLAGS,
  chunk,
  dataAt,
  type ExportFacts,
  errorPayload,
  handshake,
  MockServer,
  type Peer,
  simpleReply,
  statusPayload,
  type TransmissionRequest,
  u32,
  u64,
} from "../support/mock-server.js";
import { pattern } from "./servers.js";

/** An export that doesn't offer DF, so that replies may come in fragments. */
const FRAGMENTED = { flags: TRANSMISSION.HAS_FLAGS | TRANSMISSION.READ_ONLY };
const DIRTY = "qemu:dirty-bitmap:b0";
const CONTEXTS = { contexts: ["base:allocation", DIRTY] };

type Reply = (request: TransmissionRequest, peer: Peer) => Uint8Array | Promise<Uint8Array | undefined>;

/** Answers each request with what `reply` makes of it. */
function replying(reply: Reply, facts: ExportFacts = FRAGMENTED) {
  return MockServer.start(async (peer) => {
    await handshake(peer, facts);
    while (true) {
      const request = await peer.request();
      if (request.command === COMMAND.DISC) return;
      const bytes = await reply(request, peer);
      if (bytes !== undefined) peer.send(bytes);
    }
  });
}

const data = (request: TransmissionRequest, start: number, end: number, done = false) => {
  const at = request.offset + start;
  return chunk(request.cookie, CHUNK.OFFSET_DATA, dataAt(at, pattern(at, end - start)), done);
};
const hole = (request: TransmissionRequest, start: number, end: number, done = false) =>
  chunk(
    request.cookie,
    CHUNK.OFFSET_HOLE,
    Buffer.concat([u64(request.offset + start), u32(end - start)]),
    done,
  );
const end = (request: TransmissionRequest) => chunk(request.cookie, CHUNK.NONE);
const whole = (request: TransmissionRequest) => data(request, 0, request.length, true);

const PROTOCOL = {
  name: "ProtocolError",
  code: "NBD_PROTOCOL",
  message: expect.stringMatching(/^the server sent/),
};

describe("a read is refused, and the connection ended, for", () => {
  it.each<[string, Reply, ExportFacts?]>([
    ["a gap in the middle", (r) => Buffer.concat([data(r, 0, 1024), data(r, 1536, 4096), end(r)])],
    ["a gap at the start", (r) => Buffer.concat([data(r, 1, 4096), end(r)])],
    ["a gap at the end", (r) => Buffer.concat([data(r, 0, 4095), end(r)])],
    ["nothing at all", (r) => end(r)],
    ["chunks that overlap", (r) => Buffer.concat([data(r, 0, 2048), data(r, 2047, 4096), end(r)])],
    ["the same half twice", (r) => Buffer.concat([data(r, 0, 2048), data(r, 0, 2048), end(r)])],
    ["a hole over data", (r) => Buffer.concat([data(r, 0, 4096), hole(r, 512, 1024), end(r)])],
    ["data over a hole", (r) => Buffer.concat([hole(r, 0, 4096), data(r, 512, 1024), end(r)])],
    ["data before its start", (r) => data({ ...r, offset: r.offset - 1 }, 0, 4096, true)],
    ["data behind its end", (r) => Buffer.concat([data(r, 1, 4097, true)])],
    ["a hole behind its end", (r) => hole(r, 0, 4097, true)],
    [
      "an offset of 2^64 - 1",
      (r) => chunk(r.cookie, CHUNK.OFFSET_DATA, Buffer.concat([u64(2n ** 64n - 1n), Buffer.alloc(8)])),
    ],
    ["two chunks under DF", (r) => Buffer.concat([data(r, 0, 2048), data(r, 2048, 4096, true)]), {}],
    ["a cookie that nobody used", (r) => whole({ ...r, cookie: r.cookie + 2 })],
    ["a block status", (r) => chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [4096, 0]))],
    [
      "an error outside of it",
      (r) => chunk(r.cookie, CHUNK.ERROR_OFFSET, Buffer.concat([errorPayload(5), u64(r.offset + 4096)])),
    ],
    [
      "a second reply",
      (r) =>
        Buffer.concat([chunk(r.cookie, CHUNK.ERROR, errorPayload(5), false), data(r, 0, 10), data(r, 5, 10)]),
    ],
    [
      "errors without end",
      (r) => Buffer.concat(new Array<Buffer>(100).fill(chunk(r.cookie, CHUNK.ERROR, errorPayload(5), false))),
    ],
    ["garbage", () => Buffer.alloc(1000, "garbage")],
    ["a request instead of a reply", () => Buffer.concat([u32(0x25609513), Buffer.alloc(24)])],
  ])("%s", async (_title, reply, facts = FRAGMENTED) => {
    await using mock = await replying(reply, { ...facts });
    await using client = await NbdClient.connect(mock.uri);
    const failure = client.read(8192, Buffer.alloc(4096));
    await expect(failure).rejects.toMatchObject({
      name: "ProtocolError",
      message: expect.stringMatching(/^the server sent/),
    });
    await expect(client.read(8192, Buffer.alloc(4096))).rejects.toMatchObject({ name: "ProtocolError" });
    expect(client.connections).toBe(0);
  });

  it("a reply that comes when nothing was asked", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      peer.send(end({ cookie: 0, offset: 0, length: 0, command: 0, flags: 0 }));
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    await expect.poll(() => client.connections).toBe(0);
    await expect(client.read(0, Buffer.alloc(1))).rejects.toMatchObject(PROTOCOL);
  });

  it("a second reply to a read that is over", async () => {
    await using mock = await replying((r) => Buffer.concat([whole(r), whole(r)]));
    await using client = await NbdClient.connect(mock.uri);
    await client.read(0, Buffer.alloc(512));
    await expect.poll(() => client.connections).toBe(0);
  });
});

describe("a read succeeds with", () => {
  async function expectRead(reply: Reply, facts: ExportFacts = FRAGMENTED): Promise<void> {
    await using mock = await replying(reply, facts);
    await using client = await NbdClient.connect(mock.uri);
    const target = Buffer.alloc(4096, 0xee);
    await client.read(8192, target);
    const expected = pattern(8192, 4096);
    // In these tests holes are where the third kilobyte is.
    expect(target.subarray(0, 2048).equals(expected.subarray(0, 2048))).toBe(true);
    expect(target.subarray(3072).equals(expected.subarray(3072))).toBe(true);
    const third = target.subarray(2048, 3072);
    expect(third.equals(expected.subarray(2048, 3072)) || third.equals(Buffer.alloc(1024))).toBe(true);
  }

  it("chunks in any order, and a hole", () =>
    expectRead((r) =>
      Buffer.concat([data(r, 3072, 4096), hole(r, 2048, 3072), data(r, 0, 1), data(r, 1, 2048), end(r)]),
    ));

  it("a last chunk that says so itself", () =>
    expectRead((r) => Buffer.concat([data(r, 0, 2000), data(r, 2000, 4096, true)])));

  it("a reply that comes byte by byte", () =>
    expectRead(async (r, peer) => {
      await peer.dribble(Buffer.concat([data(r, 0, 100), data(r, 100, 4096), end(r)]), 7);
      return undefined;
    }));

  it("a reply of thousands of chunks", () =>
    expectRead((r) =>
      Buffer.concat([...Array.from({ length: 4096 }, (_, at) => data(r, at, at + 1)), end(r)]),
    ));

  it("simple replies", () =>
    expectRead((r) => simpleReply(r.cookie, 0, pattern(r.offset, r.length)), { protocol: "simple" }));
});

describe("a failed request", () => {
  it.each<[string, Reply, object]>([
    [
      "tells the error and the server's text",
      (r) => chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO, "bad sector")),
      { errno: "EIO", serverText: "bad sector" },
    ],
    [
      "tells an unknown number as EINVAL",
      (r) => chunk(r.cookie, CHUNK.ERROR, errorPayload(13, "denied")),
      { errno: "EINVAL", message: expect.stringContaining("13") },
    ],
    [
      "has an error of a type yet unknown",
      (r) => chunk(r.cookie, 0x9999, pattern(0, 100)),
      { errno: "EINVAL" },
    ],
    [
      "has its first error reported",
      (r) =>
        Buffer.concat([
          chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.ENOMEM), false),
          chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO), false),
          end(r),
        ]),
      { errno: "ENOMEM" },
    ],
    [
      "fails although all its data came",
      (r) => Buffer.concat([data(r, 0, 512), chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO))]),
      { errno: "EIO" },
    ],
    [
      "fails although its data comes after the error",
      (r) =>
        Buffer.concat([chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO), false), data(r, 0, 512, true)]),
      { errno: "EIO" },
    ],
    [
      "may have failed in the middle",
      (r) =>
        Buffer.concat([
          data(r, 0, 100),
          chunk(r.cookie, CHUNK.ERROR_OFFSET, Buffer.concat([errorPayload(5), u64(r.offset + 100)])),
        ]),
      { errno: "EIO" },
    ],
    [
      "doesn't print what a server would like to do to a terminal",
      (r) => chunk(r.cookie, CHUNK.ERROR, errorPayload(5, "\u001b]0;x\u0007")),
      { message: expect.not.stringMatching(/\p{Cc}/u) },
    ],
  ])("%s", async (_title, reply, facts) => {
    let count = 0;
    await using mock = await replying((r, peer) => (count++ === 0 ? reply(r, peer) : whole(r)));
    await using client = await NbdClient.connect(mock.uri);
    await expect(client.read(4096, Buffer.alloc(512))).rejects.toMatchObject({
      name: "RequestError",
      code: "NBD_REQUEST_FAILED",
      command: "read",
      offset: 4096,
      length: 512,
      ...facts,
    });
    const target = Buffer.alloc(512);
    await client.read(0, target);
    expect(target.equals(pattern(0, 512))).toBe(true);
  });

  it("with EOVERFLOW is asked for again in small pieces, still unfragmented", async () => {
    const seen: [number, number, number][] = [];
    await using mock = await replying(
      (r) => {
        seen.push([r.offset, r.length, r.flags]);
        return r.length > 65_536 ? chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EOVERFLOW)) : whole(r);
      },
      { flags: COMMON_FLAGS },
    );
    await using client = await NbdClient.connect(mock.uri);
    const target = Buffer.alloc(150_016);
    await client.read(512, target);
    expect(target.equals(pattern(512, 150_016))).toBe(true);
    expect(seen).toEqual([
      [512, 150_016, COMMAND_FLAG.DF],
      [512, 65_536, COMMAND_FLAG.DF],
      [512 + 65_536, 65_536, COMMAND_FLAG.DF],
      [512 + 131_072, 150_016 - 131_072, COMMAND_FLAG.DF],
    ]);
  });

  it("with EOVERFLOW for a small piece is just a failure", async () => {
    await using mock = await replying((r) => chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EOVERFLOW)));
    await using client = await NbdClient.connect(mock.uri);
    await expect(client.read(0, Buffer.alloc(65_536))).rejects.toMatchObject({ errno: "EOVERFLOW" });
    expect(client.requests).toBe(1);
  });
});

describe("the block status is refused, and the connection ended, for", () => {
  const reply =
    (contextId: number, ...extents: readonly (readonly [number, number])[]) =>
    (r: TransmissionRequest) =>
      Buffer.concat([
        chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(3 - contextId, [r.length, 0]), false),
        chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(contextId, ...extents)),
      ]);

  it.each<[string, Reply]>([
    ["an extent of zero length", reply(1, [512, 0], [0, 1], [512, 0])],
    ["nothing but an extent of zero length", reply(1, [0, 0])],
    ["extents behind the end of the request", reply(1, [2 ** 20, 0], [512, 0])],
    ["extents that all overshoot", reply(1, [0xffffffff, 0], [0xffffffff, 0])],
    [
      "a context that wasn't agreed on",
      (r) => chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(77, [512, 0])),
    ],
    ["a context twice", (r) => Buffer.concat([reply(1, [512, 0])(r).subarray(0, 32), reply(1, [512, 0])(r)])],
    ["a missing context", (r) => chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [512, 0]))],
    ["no context at all", (r) => end(r)],
    ["a simple reply without an error", (r) => simpleReply(r.cookie)],
    ["data", (r) => chunk(r.cookie, CHUNK.OFFSET_DATA, dataAt(0, Buffer.alloc(512)))],
    [
      "late chunks without end",
      (r) =>
        Buffer.concat([
          chunk(r.cookie, CHUNK.ERROR, errorPayload(5)),
          ...new Array<Buffer>(100).fill(chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [512, 0]))),
        ]),
    ],
  ])("%s", async (_title, answer) => {
    await using mock = await replying(answer, CONTEXTS);
    await using client = await NbdClient.connect(mock.uri, { metaContexts: CONTEXTS.contexts });
    await collect(client.blockStatus()).catch(() => {});
    await expect.poll(() => client.connections).toBe(0);
    await expect(collect(client.blockStatus())).rejects.toMatchObject({ name: "ProtocolError" });
  });

  it("more than the one extent that was asked for", async () => {
    for (const extents of [
      [
        [512, 0],
        [512, 1],
      ],
      [[2 ** 20 + 1, 0]],
    ] as const) {
      await using mock = await replying(
        (r) => {
          expect(r.flags).toBe(COMMAND_FLAG.REQ_ONE);
          return chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, ...extents));
        },
        { contexts: [DIRTY] },
      );
      await using client = await NbdClient.connect(mock.uri, { metaContexts: [DIRTY] });
      await expect(collect(client.blockStatus({ onlyFirst: true }))).rejects.toMatchObject(PROTOCOL);
    }
  });
});

describe("the block status", () => {
  it("survives chunks that come after the reply was over, as QEMU sends them when a context fails", async () => {
    let count = 0;
    await using mock = await replying((r) => {
      count += 1;
      if (r.command === COMMAND.READ) return whole(r);
      const good = [1, 2].map((id) => statusPayload(id, [r.length, id]));
      if (count > 1)
        return Buffer.concat(
          good.map((payload, index) => chunk(r.cookie, CHUNK.BLOCK_STATUS, payload, index === 1)),
        );
      const failed = chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO, "no status"));
      return Buffer.concat([failed, failed, chunk(r.cookie, CHUNK.BLOCK_STATUS, good[1])]);
    }, CONTEXTS);
    await using client = await NbdClient.connect(mock.uri, { metaContexts: CONTEXTS.contexts });
    await expect(collect(client.blockStatus())).rejects.toMatchObject({
      errno: "EIO",
      command: "block status",
    });
    await client.read(0, Buffer.alloc(512));
    const batches: StatusBatch[] = await collect(client.blockStatus());
    expect(batches.map(({ offset, length }) => [offset, length])).toEqual([[0, 1024 * 1024]]);
  });

  it("is clipped where the server says more than was asked", async () => {
    await using mock = await replying(
      (r) => chunk(r.cookie, CHUNK.BLOCK_STATUS, statusPayload(1, [512, 1], [0xffffffff, 0])),
      { contexts: [DIRTY] },
    );
    await using client = await NbdClient.connect(mock.uri, { metaContexts: [DIRTY] });
    const [batch] = await collect(client.blockStatus({ offset: 1024, length: 4096 }));
    expect(batch?.contexts.get(DIRTY)).toEqual([
      { offset: 1024, length: 512, flags: 1 },
      { offset: 1536, length: 3584, flags: 0 },
    ]);
  });

  it("isn't asked for without a context", async () => {
    await using mock = await replying(whole);
    await using client = await NbdClient.connect(mock.uri);
    await expect(collect(client.blockStatus())).rejects.toMatchObject({ code: "NBD_NOT_OFFERED" });
    await expect(collect(client.blockStatus({ offset: 2 ** 20 + 1 }))).rejects.toMatchObject({
      code: "NBD_OUT_OF_RANGE",
    });
  });
});

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

  it("carry the flags that were asked for", async () => {
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

  it("are at most sixteen at once", async () => {
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
    await Promise.all(Array.from({ length: 50 }, (_, index) => client.read(index * 512, Buffer.alloc(512))));
    expect(most).toBe(16);
  });

  it("that fail with their connection all settle", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      for (let count = 0; count < 16; count++) await peer.request();
    });
    await using client = await NbdClient.connect(mock.uri);
    const outcomes = await Promise.allSettled(
      Array.from({ length: 50 }, () => client.read(0, Buffer.alloc(512))),
    );
    for (const outcome of outcomes) {
      expect(outcome).toMatchObject({ status: "rejected", reason: { code: "NBD_CLOSED_BY_SERVER" } });
    }
  });

  it("share a signal by the dozen without a warning, and leave no one waiting when it fires", async () => {
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

  it("aborted before their payload began are skipped when they are answered", async () => {
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

  it("aborted in the middle of their payload cost the connection, which the others are told", async () => {
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

  it("aborted in the middle of being sent cost the connection", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer, { flags: TRANSMISSION.HAS_FLAGS });
      await peer.request();
      // The rest stays in the socket, which is full at some time.
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
});

describe("a silent server", () => {
  it("is given up on only while something is outstanding", async () => {
    await using mock = await replying(async (r) => {
      await new Promise((resolve) => setTimeout(resolve, r.offset === 0 ? 10 : 10_000));
      return whole(r);
    });
    await using client = await NbdClient.connect(mock.uri, { idleTimeoutMs: 100 });
    await client.read(0, Buffer.alloc(512));
    await new Promise((resolve) => setTimeout(resolve, 250));
    await client.read(0, Buffer.alloc(512));
    const before = Date.now();
    await expect(client.read(512, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_IDLE_TIMEOUT" });
    expect(Date.now() - before).toBeLessThan(1000);
  });

  it("is not one that is slow", async () => {
    await using mock = await replying(async (r, peer) => {
      const bytes = whole(r);
      for (let at = 0; at < bytes.length; at += 100) {
        peer.send(bytes.subarray(at, at + 100));
        await new Promise((resolve) => setTimeout(resolve, 30));
      }
      return undefined;
    });
    await using client = await NbdClient.connect(mock.uri, { idleTimeoutMs: 120 });
    await client.read(0, Buffer.alloc(1024));
  });

  it("doesn't keep a client from closing for long", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      await new Promise(() => {});
    });
    const client = await NbdClient.connect(mock.uri);
    const before = Date.now();
    await client.close();
    await client.close();
    expect(Date.now() - before).toBeLessThan(3000);
    await expect(client.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: "NBD_CLOSED" });
  });

  it("has what is outstanding waited for when the client closes", async () => {
    await using mock = await replying(async (r) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      return whole(r);
    });
    const client = await NbdClient.connect(mock.uri);
    const target = Buffer.alloc(512);
    const reading = client.read(512, target);
    await client.close();
    await reading;
    expect(target.equals(pattern(512, 512))).toBe(true);
  });
});
