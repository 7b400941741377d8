import { describe, expect, it } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { CHUNK, COMMAND_FLAG, ERRNO } from "../../src/nbd/wire/constants.js";
import {
  data,
  end,
  FRAGMENTED,
  hole,
  PROTOCOL,
  type Reply,
  replying,
  whole,
} from "../support/mock-replies.js";
import {
  COMMON_FLAGS,
  chunk,
  type ExportFacts,
  errorPayload,
  handshake,
  MockServer,
  simpleReply,
  u64,
} from "../support/mock-server.js";
import { WRONG, WRONG_REPLIES } from "../support/wrong-replies.js";
import { pattern } from "./servers.js";

describe("a read is refused, and the connection ended, for", () => {
  it.each(WRONG_REPLIES)("%s", async (_title, reply, facts = FRAGMENTED) => {
    await using mock = await replying(reply, { ...facts });
    await using client = await NbdClient.connect(mock.uri);
    await expect(client.read(8192, Buffer.alloc(4096))).rejects.toMatchObject(WRONG);
    await expect(client.read(8192, Buffer.alloc(4096))).rejects.toMatchObject({ name: "ProtocolError" });
    expect(client.connections).toBe(0);
  });

  it("a reply without a request", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await handshake(peer);
      peer.send(end({ cookie: 0, offset: 0, length: 0, command: 0, flags: 0 }));
      await peer.gone();
    });
    await using client = await NbdClient.connect(mock.uri);
    await expect.poll(() => client.connections).toBe(0);
    await expect(client.read(0, Buffer.alloc(1))).rejects.toMatchObject(PROTOCOL);
  });

  it("a second reply to a finished read", async () => {
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
    // In these tests, the hole is the third kilobyte.
    expect(target.subarray(0, 2048).equals(expected.subarray(0, 2048))).toBe(true);
    expect(target.subarray(3072).equals(expected.subarray(3072))).toBe(true);
    const third = target.subarray(2048, 3072);
    expect(third.equals(expected.subarray(2048, 3072)) || third.equals(Buffer.alloc(1024))).toBe(true);
  }

  it("chunks in any order, and a hole", () =>
    expectRead((r) =>
      Buffer.concat([data(r, 3072, 4096), hole(r, 2048, 3072), data(r, 0, 1), data(r, 1, 2048), end(r)]),
    ));

  it("a data chunk that is marked as the last one", () =>
    expectRead((r) => Buffer.concat([data(r, 0, 2000), data(r, 2000, 4096, true)])));

  it("a reply in pieces of a few bytes", () =>
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
      "reports the error and the server's text",
      (r) => chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EIO, "bad sector")),
      { errno: "EIO", serverText: "bad sector" },
    ],
    [
      "reports an unknown number as EINVAL",
      (r) => chunk(r.cookie, CHUNK.ERROR, errorPayload(13, "denied")),
      { errno: "EINVAL", message: expect.stringContaining("13") },
    ],
    [
      "may have an error of an unknown type",
      (r) => chunk(r.cookie, 0x9999, pattern(0, 100)),
      { errno: "EINVAL", message: expect.stringContaining("with an error of unknown type 39321") },
    ],
    [
      "may have an error of an unknown type with a message",
      (r) => chunk(r.cookie, 0x8123, Buffer.concat([errorPayload(ERRNO.EIO, "worn out"), pattern(0, 20)])),
      {
        errno: "EIO",
        serverText: "worn out",
        message: expect.stringMatching(/an error of unknown type 33059: "worn out"$/),
      },
    ],
    [
      "may have an empty error of an unknown type",
      (r) => chunk(r.cookie, 0x8123),
      { errno: "EINVAL", message: expect.stringContaining("with an error of unknown type 33059") },
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
      "may fail in the middle",
      (r) =>
        Buffer.concat([
          data(r, 0, 100),
          chunk(r.cookie, CHUNK.ERROR_OFFSET, Buffer.concat([errorPayload(5), u64(r.offset + 100)])),
        ]),
      { errno: "EIO" },
    ],
    [
      "never shows the server's terminal control characters",
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

  it("with EOVERFLOW is repeated in small pieces, still unfragmented", async () => {
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

  it("with EOVERFLOW for a small piece just fails", async () => {
    await using mock = await replying((r) => chunk(r.cookie, CHUNK.ERROR, errorPayload(ERRNO.EOVERFLOW)));
    await using client = await NbdClient.connect(mock.uri);
    await expect(client.read(0, Buffer.alloc(65_536))).rejects.toMatchObject({ errno: "EOVERFLOW" });
    expect(client.requests).toBe(1);
  });
});
