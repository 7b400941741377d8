import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import {
  type DescribeExtents,
  MemoryDisk,
  NbdServer,
  type NbdServerEvent,
  ServedError,
  type ServedExport,
} from "../../../src/nbd/server/index.js";
import {
  type Chunk,
  DISC_FRAME,
  extendedRequestFrame,
  infoQuery,
  metaQuery,
  optionFrame,
  RawClient,
  requestFrame,
  u32,
  u64,
} from "./raw-client.js";
import { temporaryDirectory } from "./tools.js";

const GO = 7;
const STRUCTURED_REPLY = 8;
const SET_META_CONTEXT = 10;
const EXTENDED_HEADERS = 11;

const READ = 0;
const WRITE = 1;
const DISC = 2;
const FLUSH = 3;
const TRIM = 4;
const WRITE_ZEROES = 6;
const BLOCK_STATUS = 7;

const DF = 4;
const REQ_ONE = 8;
const PAYLOAD_LEN = 32;

const NONE = 0;
const OFFSET_DATA = 1;
const OFFSET_HOLE = 2;
const STATUS = 5;
const STATUS_EXT = 6;
const ERROR = 0x8001;
const DONE = 1;

const EPERM = 1;
const EIO = 5;
const ENOMEM = 12;
const EINVAL = 22;

const MIB = 1024 * 1024;

/** Eight-byte pages: "abcdefgh", hole, zero, "ABCDEFGH", hole ... up to 64 MiB. */
function smallPages(): MemoryDisk {
  const disk = new MemoryDisk({ size: 64 * MIB, pageSize: 8 });
  disk.write(0, Buffer.from("abcdefgh"));
  disk.writeZeroes(16, 8);
  disk.startBitmap("b", 4);
  disk.write(24, Buffer.from("ABCDEFGH"));
  return disk;
}

/** Extents of a structured block status. */
const extentsOf = ({ payload }: Chunk): { length: number; flags: number }[] =>
  Array.from({ length: (payload.length - 4) / 8 }, (_, index) => ({
    length: payload.readUInt32BE(4 + 8 * index),
    flags: payload.readUInt32BE(8 + 8 * index),
  }));

const errorOf = (
  chunk: Chunk | undefined,
): { type: number | undefined; error: number | undefined; text: string } => ({
  type: chunk?.type,
  error: chunk?.payload.readUInt32BE(0),
  text: chunk?.payload.subarray(6).toString() ?? "",
});

describe("transmission", () => {
  const point = smallPages().freeze();
  const events: NbdServerEvent[] = [];
  let directory: Awaited<ReturnType<typeof temporaryDirectory>>;
  let server: NbdServer;

  const moody: ServedExport = {
    size: 4 * MIB,
    read: (offset, length) => {
      if (offset === 0) throw new ServedError("ENOMEM", "too much to ask");
      if (offset === MIB) throw new Error("secret path /etc/shadow");
      if (offset === 3 * MIB) throw new ServedError("EIO", `x${"ä".repeat(3000)}`);
      if (offset === 2 * MIB) return new Uint8Array(length - 1);
      return new Uint8Array(length).fill(0x55);
    },
    contexts: new Map<string, DescribeExtents>([
      [
        "x:moods",
        (offset) => {
          if (offset === 0) throw new ServedError("EIO", "in no mood");
          return offset === MIB ? [] : [{ length: 8 * MIB, flags: 3 }];
        },
      ],
      ["x:steady", () => [{ length: 8 * MIB, flags: 7 }]],
      // Every byte is unlike its neighbours.
      [
        "x:stripes",
        function* () {
          for (let flags = 0; ; flags = 1 - flags) yield { length: 1, flags };
        },
      ],
    ]),
  };

  beforeAll(async () => {
    directory = await temporaryDirectory();
    server = await NbdServer.listen({
      exports: new Map([
        ["disk", point],
        ["moody", moody],
        ["picky", { ...point, blockSize: { minimum: 512, preferred: 4096, maximum: 65536 } }],
      ]),
      address: { path: join(directory.path, "nbd.sock") },
      onEvent: (event) => events.push(event),
    });
  });
  beforeEach(() => {
    events.length = 0;
  });
  afterAll(async () => {
    await server.close();
    await directory[Symbol.asyncDispose]();
  });

  async function connected(
    mode: "simple" | "structured" | "extended",
    exportName = "disk",
    ...contexts: string[]
  ): Promise<RawClient> {
    const client = await RawClient.greeted(server);
    if (mode === "structured") await client.option(STRUCTURED_REPLY);
    if (mode === "extended") await client.option(EXTENDED_HEADERS);
    if (contexts.length > 0) await client.option(SET_META_CONTEXT, metaQuery(exportName, ...contexts));
    expect(await client.outcome(GO, infoQuery(exportName, 3))).toBe(1);
    return client;
  }

  describe("simple replies", () => {
    test("a read is a header and the data", async () => {
      await using client = await connected("simple");
      client.send(requestFrame({ type: READ, cookie: 0xfedcba9876543210n, offset: 6, length: 12 }));
      const reply = await client.simpleReply(12);
      expect(reply).toEqual({
        error: 0,
        cookie: 0xfedcba9876543210n,
        data: Buffer.from("gh\0\0\0\0\0\0\0\0\0\0"),
      });
    });

    test.each([
      {
        title: "a read past the end",
        request: { type: READ, offset: 64 * MIB - 1, length: 2 },
        error: EINVAL,
      },
      {
        title: "a read from nowhere",
        request: { type: READ, offset: 2n ** 64n - 1n, length: 1 },
        error: EINVAL,
      },
      { title: "a read of 4 GiB", request: { type: READ, length: 0xffffffff }, error: EINVAL },
      { title: "a read larger than 32 MiB", request: { type: READ, length: 32 * MIB + 1 }, error: EINVAL },
      {
        title: "DF without structured replies",
        request: { type: READ, flags: DF, length: 1 },
        error: EINVAL,
      },
      { title: "block status without contexts", request: { type: BLOCK_STATUS, length: 1 }, error: EINVAL },
      { title: "a trim", request: { type: TRIM, length: 1 }, error: EPERM },
      { title: "zeroes to write", request: { type: WRITE_ZEROES, length: 1 }, error: EPERM },
      { title: "a flush, which was not offered", request: { type: FLUSH }, error: EINVAL },
      { title: "an unknown command", request: { type: 4711, length: 1 }, error: EINVAL },
      {
        title: "PAYLOAD_LEN without extended headers",
        request: { type: READ, flags: PAYLOAD_LEN, length: 1 },
        error: EINVAL,
      },
    ])("$title is refused with error $error, and the connection goes on", async ({ request, error }) => {
      await using client = await connected("simple");
      client.send(
        requestFrame({ ...request, cookie: 1 }),
        requestFrame({ type: READ, cookie: 2, length: 1 }),
      );
      expect(await client.simpleReply(0)).toMatchObject({ cookie: 1n, error });
      expect(await client.simpleReply(1)).toMatchObject({ cookie: 2n, error: 0, data: Buffer.from("a") });
    });

    test("the payload of a refused write is skipped", async () => {
      await using client = await connected("simple");
      client.send(requestFrame({ type: WRITE, cookie: 1, length: 200_000 }), Buffer.alloc(200_000, 0x25));
      client.send(requestFrame({ type: READ, cookie: 2, offset: 7, length: 1 }));
      expect(await client.simpleReply(0)).toMatchObject({ cookie: 1n, error: EPERM });
      expect(await client.simpleReply(1)).toMatchObject({ cookie: 2n, data: Buffer.from("h") });
    });

    test("a write that announces more than any client may send ends the connection", async () => {
      await using client = await connected("simple");
      client.send(requestFrame({ type: WRITE, length: 32 * MIB + 1 }));
      expect(await client.rest()).toHaveLength(0);
      await expect
        .poll(() => events.at(-1))
        .toMatchObject({ type: "disconnected", error: { code: "BAD_PAYLOAD" } });
    });

    test("something that is not a request ends the connection", async () => {
      await using client = await connected("simple");
      client.send(extendedRequestFrame({ type: READ, length: 1 }));
      expect(await client.rest()).toHaveLength(0);
      await expect
        .poll(() => events.at(-1))
        .toMatchObject({ type: "disconnected", error: { code: "BAD_MAGIC" } });
    });

    test("a read of nothing succeeds with nothing", async () => {
      await using client = await connected("simple");
      client.send(requestFrame({ type: READ, offset: 64 * MIB }));
      expect(await client.simpleReply(0)).toMatchObject({ error: 0 });
    });

    test("DISC is the last word: replies in flight are sent, then the server hangs up", async () => {
      await using client = await connected("simple");
      const requests = Array.from({ length: 40 }, (_, cookie) =>
        requestFrame({ type: READ, cookie, length: MIB }),
      );
      client.send(...requests, DISC_FRAME, requestFrame({ type: READ, length: 1 }));
      expect(await client.rest()).toHaveLength(40 * (16 + MIB));
      await expect.poll(() => events.at(-1)).toMatchObject({ type: "disconnected" });
      expect(events.at(-1)).not.toHaveProperty("error");
    });
  });

  describe("structured replies", () => {
    test("a read is split along the allocation", async () => {
      await using client = await connected("structured");
      client.send(requestFrame({ type: READ, offset: 4, length: 30 }));
      expect(await client.chunks()).toMatchObject([
        { type: OFFSET_DATA, flags: 0, payload: Buffer.concat([u64(4), Buffer.from("efgh")]) },
        { type: OFFSET_HOLE, flags: 0, payload: Buffer.concat([u64(8), u32(8)]) },
        { type: OFFSET_HOLE, flags: 0, payload: Buffer.concat([u64(16), u32(8)]) },
        { type: OFFSET_DATA, flags: 0, payload: Buffer.concat([u64(24), Buffer.from("ABCDEFGH")]) },
        { type: OFFSET_HOLE, flags: DONE, payload: Buffer.concat([u64(32), u32(2)]) },
      ]);
    });

    test("with DF a read is one chunk of data", async () => {
      await using client = await connected("structured");
      client.send(requestFrame({ type: READ, flags: DF, offset: 4, length: 30 }));
      const chunks = await client.chunks();
      expect(chunks).toMatchObject([{ type: OFFSET_DATA, flags: DONE }]);
      expect(chunks[0]?.payload.toString().replaceAll("\0", ".")).toBe(
        ".......\x04efgh................ABCDEFGH..",
      );
    });

    test("without base:allocation there is nothing to split along", async () => {
      await using client = await connected("structured", "moody");
      client.send(requestFrame({ type: READ, offset: 5, length: 30 }));
      expect(await client.chunks()).toMatchObject([{ type: OFFSET_DATA, flags: DONE }]);
    });

    test("a read of nothing is one empty chunk", async () => {
      await using client = await connected("structured");
      client.send(requestFrame({ type: READ }));
      expect(await client.chunks()).toMatchObject([{ type: NONE, flags: DONE, payload: Buffer.alloc(0) }]);
    });

    test("errors are chunks with a text", async () => {
      await using client = await connected("structured");
      client.send(requestFrame({ type: WRITE, length: 3 }), Buffer.from("abc"));
      expect(errorOf((await client.chunks())[0])).toEqual({
        type: ERROR,
        error: EPERM,
        text: "this export is read-only",
      });
    });

    test("block sizes are insisted on", async () => {
      await using client = await connected("structured", "picky");
      for (const request of [
        { offset: 1, length: 512 },
        { offset: 512, length: 511 },
        { offset: 0, length: 65536 + 512 },
      ]) {
        client.send(requestFrame({ type: READ, ...request }));
        expect(errorOf((await client.chunks())[0])).toMatchObject({ error: EINVAL });
      }
      client.send(requestFrame({ type: READ, flags: DF, offset: 512, length: 65536 }));
      expect((await client.chunks())[0]?.payload).toHaveLength(8 + 65536);
    });
  });

  describe("block status", () => {
    test("there is a chunk for each chosen context, and only the last says done", async () => {
      await using client = await connected("structured", "disk", "qemu:dirty-bitmap:b", "base:allocation");
      client.send(requestFrame({ type: BLOCK_STATUS, offset: 2, length: 28 }));
      const chunks = await client.chunks();
      expect(chunks).toMatchObject([
        { type: STATUS, flags: 0 },
        { type: STATUS, flags: DONE },
      ]);
      expect(chunks.map(extentsOf)).toEqual([
        [
          { length: 6, flags: 0 },
          { length: 8, flags: 3 },
          { length: 8, flags: 2 },
          { length: 6, flags: 0 },
        ],
        [
          { length: 22, flags: 0 },
          { length: 6, flags: 1 },
        ],
      ]);
    });

    test("REQ_ONE gets one extent of each context, inside the request", async () => {
      await using client = await connected("structured", "disk", "base:allocation");
      client.send(requestFrame({ type: BLOCK_STATUS, flags: REQ_ONE, offset: 2, length: 3 }));
      expect((await client.chunks()).map(extentsOf)).toEqual([[{ length: 3, flags: 0 }]]);
    });

    test("extents that overshoot are clipped", async () => {
      await using client = await connected("structured", "moody", "x:steady");
      client.send(requestFrame({ type: BLOCK_STATUS, offset: 3, length: 100 }));
      expect((await client.chunks()).map(extentsOf)).toEqual([[{ length: 100, flags: 7 }]]);
    });

    test("endless extents end with the size of a reply", async () => {
      await using client = await connected("structured", "moody", "x:stripes");
      client.send(requestFrame({ type: BLOCK_STATUS, length: MIB }));
      const [chunk] = await client.chunks();
      expect(chunk?.payload).toHaveLength(4 + 8 * 8192);
    });

    test.each([
      { title: "of nothing", request: { offset: 0, length: 0 } },
      { title: "past the end", request: { offset: 64 * MIB - 1, length: 2 } },
      { title: "with DF", request: { flags: DF, length: 1 } },
    ])("$title is refused", async ({ request }) => {
      await using client = await connected("structured", "disk", "base:allocation");
      client.send(requestFrame({ type: BLOCK_STATUS, ...request }));
      expect(errorOf((await client.chunks())[0])).toMatchObject({ type: ERROR, error: EINVAL });
    });
  });

  describe("an export that fails", () => {
    test("chooses error and text of a read", async () => {
      await using client = await connected("structured", "moody");
      client.send(requestFrame({ type: READ, length: 1 }));
      expect(errorOf((await client.chunks())[0])).toMatchObject({ error: ENOMEM, text: "too much to ask" });
      expect(events.at(-1)).toMatchObject({
        type: "request-failed",
        exportName: "moody",
        error: { code: "ENOMEM" },
      });
    });

    test("keeps its secrets where it did not choose", async () => {
      await using client = await connected("structured", "moody");
      client.send(requestFrame({ type: READ, offset: MIB, length: 1 }));
      expect(errorOf((await client.chunks())[0])).toMatchObject({ error: EIO, text: "the export failed" });
      expect(events.at(-1)).toMatchObject({ error: { message: "secret path /etc/shadow" } });
    });

    test("may say more than fits, and is cut short between two characters", async () => {
      await using client = await connected("structured", "moody");
      client.send(requestFrame({ type: READ, offset: 3 * MIB, length: 1 }));
      expect(errorOf((await client.chunks())[0]).text).toBe(`x${"ä".repeat(2047)}`);
    });

    test("can't put the connection out of step with too few bytes", async () => {
      await using client = await connected("simple", "moody");
      client.send(requestFrame({ type: READ, offset: 2 * MIB, length: 9 }));
      client.send(requestFrame({ type: READ, offset: 7, length: 2 }));
      expect(await client.simpleReply(9)).toMatchObject({ error: EIO });
      expect(await client.simpleReply(2)).toMatchObject({ error: 0, data: Buffer.from("UU") });
    });

    test("fails a block status as a whole, whichever context it is", async () => {
      await using client = await connected("structured", "moody", "x:moods", "x:steady");
      client.send(requestFrame({ type: BLOCK_STATUS, length: 1 }));
      expect((await client.chunks()).map(errorOf)).toEqual([{ type: ERROR, error: EIO, text: "in no mood" }]);
      client.send(requestFrame({ type: BLOCK_STATUS, offset: MIB, length: 1 }));
      expect((await client.chunks()).map(errorOf)).toMatchObject([{ type: ERROR, error: EIO }]);
    });
  });

  describe("extended headers", () => {
    test("a read is split just as before, and repeats the request's offset", async () => {
      await using client = await connected("extended");
      client.send(extendedRequestFrame({ type: READ, offset: 4, length: 10 }));
      expect(await client.chunks()).toEqual([
        {
          type: OFFSET_DATA,
          flags: 0,
          cookie: 7n,
          offset: 4n,
          payload: Buffer.concat([u64(4), Buffer.from("efgh")]),
        },
        { type: OFFSET_HOLE, flags: DONE, cookie: 7n, offset: 4n, payload: Buffer.concat([u64(8), u32(6)]) },
      ]);
    });

    test("an offset beyond all exports comes back exactly, with the error", async () => {
      await using client = await connected("extended");
      const offset = 2n ** 63n + 1n;
      client.send(extendedRequestFrame({ type: READ, offset, length: 2n ** 64n - 1n }));
      const [chunk] = await client.chunks();
      expect(chunk).toMatchObject({ offset, type: ERROR });
      expect(errorOf(chunk)).toMatchObject({ error: EINVAL });
    });

    test("block status has 64-bit extents with their number in front", async () => {
      const huge: ServedExport = {
        size: 2 ** 52,
        read: (_offset, length) => new Uint8Array(length),
        contexts: new Map([["base:allocation", () => [{ length: 2 ** 52, flags: 3 }]]]),
      };
      await using other = await NbdServer.listen({
        exports: new Map([["", huge]]),
        address: { path: join(directory.path, "huge.sock") },
      });
      await using client = await RawClient.greeted(other);
      await client.option(EXTENDED_HEADERS);
      await client.option(SET_META_CONTEXT, metaQuery("", "base:allocation"));
      await client.option(GO, infoQuery(""));
      client.send(extendedRequestFrame({ type: BLOCK_STATUS, offset: 5, length: 2 ** 52 - 5 }));
      const [chunk] = await client.chunks();
      expect(chunk).toMatchObject({ type: STATUS_EXT, flags: DONE });
      expect(chunk?.payload.subarray(4)).toEqual(Buffer.concat([u32(1), u64(2 ** 52 - 5), u64(3)]));
    });

    test("a payload where none belongs is skipped and refused", async () => {
      await using client = await connected("extended", "disk", "base:allocation");
      client.send(
        extendedRequestFrame({ type: BLOCK_STATUS, flags: PAYLOAD_LEN, length: 12 }),
        Buffer.alloc(12),
        extendedRequestFrame({ type: WRITE, flags: PAYLOAD_LEN, length: 5 }),
        Buffer.alloc(5),
      );
      expect(errorOf((await client.chunks())[0])).toMatchObject({ error: EINVAL });
      expect(errorOf((await client.chunks())[0])).toMatchObject({ error: EPERM });
    });
  });

  /** A whole conversation, which must not depend on how its bytes are packed. */
  describe("frames arrive in pieces", () => {
    const conversation = Buffer.concat([
      u32(3),
      optionFrame(STRUCTURED_REPLY),
      optionFrame(SET_META_CONTEXT, metaQuery("disk", "base:allocation")),
      optionFrame(GO, infoQuery("disk", 3)),
      requestFrame({ type: WRITE, cookie: 1, length: 28 }),
      requestFrame({ type: DISC }), // the payload
      requestFrame({ type: READ, cookie: 2, offset: 5, length: 4 }),
      requestFrame({ type: BLOCK_STATUS, cookie: 3, length: 20 }),
      requestFrame({ type: DISC }),
    ]);
    /** Greeting, and the replies to three options. */
    const HANDSHAKE_BYTES = 18 + 20 + (20 + 19 + 20) + (20 + 12 + 20 + 14 + 20);

    async function answersTo(pieces: readonly Buffer[]): Promise<{ handshake: string; chunks: Chunk[] }> {
      await using client = await RawClient.connect(server);
      for (const piece of pieces) {
        client.send(piece);
        // Two turns of the event loop: one to send the piece, one for the server to take it.
        await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
      }
      const handshake = (await client.read(HANDSHAKE_BYTES)).toString("hex");
      const chunks = [...(await client.chunks()), ...(await client.chunks()), ...(await client.chunks())];
      expect(await client.rest()).toHaveLength(0);
      // Replies come in any order.
      return { handshake, chunks: chunks.sort((a, b) => Number(a.cookie - b.cookie)) };
    }

    test("cut in two at every byte", async () => {
      const expected = await answersTo([conversation]);
      expect(expected.chunks.map(({ type }) => type)).toEqual([ERROR, OFFSET_DATA, OFFSET_HOLE, STATUS]);
      for (let cut = 1; cut < conversation.length; cut++) {
        const answers = await answersTo([conversation.subarray(0, cut), conversation.subarray(cut)]);
        expect(answers, `cut at ${cut}`).toEqual(expected);
      }
    });

    test("byte by byte", async () => {
      const single = Array.from(conversation, (byte) => Buffer.from([byte]));
      expect(await answersTo(single)).toEqual(await answersTo([conversation]));
    });
  });
});
