import { describe, expect, test } from "vitest";
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
import {
  BLOCK_STATUS,
  DF,
  DISC,
  DONE,
  EINVAL,
  EIO,
  ENOMEM,
  EPERM,
  ERROR,
  errorOf,
  FLUSH,
  GO,
  MIB,
  NONE,
  OFFSET_DATA,
  OFFSET_HOLE,
  PAYLOAD_LEN,
  READ,
  SET_META_CONTEXT,
  STATUS,
  STRUCTURED_REPLY,
  serveDisks,
  TRIM,
  WRITE,
  WRITE_ZEROES,
} from "./transmission-server.js";

describe("transmission", () => {
  const disks = serveDisks();

  describe("simple replies", () => {
    test("a read is a header and the data", async () => {
      await using client = await disks.connected("simple");
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
    ])("$title is refused with error $error, and the connection continues", async ({ request, error }) => {
      await using client = await disks.connected("simple");
      client.send(
        requestFrame({ ...request, cookie: 1 }),
        requestFrame({ type: READ, cookie: 2, length: 1 }),
      );
      expect(await client.simpleReply(0)).toMatchObject({ cookie: 1n, error });
      expect(await client.simpleReply(1)).toMatchObject({ cookie: 2n, error: 0, data: Buffer.from("a") });
    });

    test("the payload of a refused write is skipped", async () => {
      await using client = await disks.connected("simple");
      client.send(requestFrame({ type: WRITE, cookie: 1, length: 200_000 }), Buffer.alloc(200_000, 0x25));
      client.send(requestFrame({ type: READ, cookie: 2, offset: 7, length: 1 }));
      expect(await client.simpleReply(0)).toMatchObject({ cookie: 1n, error: EPERM });
      expect(await client.simpleReply(1)).toMatchObject({ cookie: 2n, data: Buffer.from("h") });
    });

    test("a write larger than any client may send ends the connection", async () => {
      await using client = await disks.connected("simple");
      client.send(requestFrame({ type: WRITE, length: 32 * MIB + 1 }));
      expect(await client.rest()).toHaveLength(0);
      await expect
        .poll(() => disks.events.at(-1))
        .toMatchObject({ type: "disconnected", error: { code: "BAD_PAYLOAD" } });
    });

    test("something that is not a request ends the connection", async () => {
      await using client = await disks.connected("simple");
      client.send(extendedRequestFrame({ type: READ, length: 1 }));
      expect(await client.rest()).toHaveLength(0);
      await expect
        .poll(() => disks.events.at(-1))
        .toMatchObject({ type: "disconnected", error: { code: "BAD_MAGIC" } });
    });

    test("a read of zero bytes succeeds without data", async () => {
      await using client = await disks.connected("simple");
      client.send(requestFrame({ type: READ, offset: 64 * MIB }));
      expect(await client.simpleReply(0)).toMatchObject({ error: 0 });
    });

    test("DISC ends the conversation: pending replies are sent, then the server hangs up", async () => {
      await using client = await disks.connected("simple");
      const requests = Array.from({ length: 40 }, (_, cookie) =>
        requestFrame({ type: READ, cookie, length: MIB }),
      );
      client.send(...requests, DISC_FRAME, requestFrame({ type: READ, length: 1 }));
      expect(await client.rest()).toHaveLength(40 * (16 + MIB));
      await expect.poll(() => disks.events.at(-1)).toMatchObject({ type: "disconnected" });
      expect(disks.events.at(-1)).not.toHaveProperty("error");
    });
  });

  describe("structured replies", () => {
    test("a read is split along the allocation", async () => {
      await using client = await disks.connected("structured");
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
      await using client = await disks.connected("structured");
      client.send(requestFrame({ type: READ, flags: DF, offset: 4, length: 30 }));
      const chunks = await client.chunks();
      expect(chunks).toMatchObject([{ type: OFFSET_DATA, flags: DONE }]);
      expect(chunks[0]?.payload.toString().replaceAll("\0", ".")).toBe(
        ".......\x04efgh................ABCDEFGH..",
      );
    });

    test("without base:allocation a read is not split", async () => {
      await using client = await disks.connected("structured", "moody");
      client.send(requestFrame({ type: READ, offset: 5, length: 30 }));
      expect(await client.chunks()).toMatchObject([{ type: OFFSET_DATA, flags: DONE }]);
    });

    test("a read of zero bytes is one empty chunk", async () => {
      await using client = await disks.connected("structured");
      client.send(requestFrame({ type: READ }));
      expect(await client.chunks()).toMatchObject([{ type: NONE, flags: DONE, payload: Buffer.alloc(0) }]);
    });

    test("errors are chunks with a text", async () => {
      await using client = await disks.connected("structured");
      client.send(requestFrame({ type: WRITE, length: 3 }), Buffer.from("abc"));
      expect(errorOf((await client.chunks())[0])).toEqual({
        type: ERROR,
        error: EPERM,
        text: "this export is read-only",
      });
    });

    test("block sizes are enforced", async () => {
      await using client = await disks.connected("structured", "picky");
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

  describe("an export that fails", () => {
    test("chooses the error and text of a read", async () => {
      await using client = await disks.connected("structured", "moody");
      client.send(requestFrame({ type: READ, length: 1 }));
      expect(errorOf((await client.chunks())[0])).toMatchObject({ error: ENOMEM, text: "too much to ask" });
      expect(disks.events.at(-1)).toMatchObject({
        type: "request-failed",
        exportName: "moody",
        error: { code: "ENOMEM" },
      });
    });

    test("hides errors that are not meant for the client", async () => {
      await using client = await disks.connected("structured", "moody");
      client.send(requestFrame({ type: READ, offset: MIB, length: 1 }));
      expect(errorOf((await client.chunks())[0])).toMatchObject({ error: EIO, text: "the export failed" });
      expect(disks.events.at(-1)).toMatchObject({ error: { message: "secret path /etc/shadow" } });
    });

    test("may give a long text, which is cut between two characters", async () => {
      await using client = await disks.connected("structured", "moody");
      client.send(requestFrame({ type: READ, offset: 3 * MIB, length: 1 }));
      expect(errorOf((await client.chunks())[0]).text).toBe(`x${"ä".repeat(2047)}`);
    });

    test("can't desynchronize the connection with too few bytes", async () => {
      await using client = await disks.connected("simple", "moody");
      client.send(requestFrame({ type: READ, offset: 2 * MIB, length: 9 }));
      client.send(requestFrame({ type: READ, offset: 7, length: 2 }));
      expect(await client.simpleReply(9)).toMatchObject({ error: EIO });
      expect(await client.simpleReply(2)).toMatchObject({ error: 0, data: Buffer.from("UU") });
    });

    test("fails the whole block status if one context fails", async () => {
      await using client = await disks.connected("structured", "moody", "x:moods", "x:steady");
      client.send(requestFrame({ type: BLOCK_STATUS, length: 1 }));
      expect((await client.chunks()).map(errorOf)).toEqual([{ type: ERROR, error: EIO, text: "in no mood" }]);
      client.send(requestFrame({ type: BLOCK_STATUS, offset: MIB, length: 1 }));
      expect((await client.chunks()).map(errorOf)).toMatchObject([{ type: ERROR, error: EIO }]);
    });
  });

  /** A whole conversation, which must not depend on the segments of its bytes. */
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
    /** The greeting, and the replies to three options. */
    const HANDSHAKE_BYTES = 18 + 20 + (20 + 19 + 20) + (20 + 12 + 20 + 14 + 20);

    async function answersTo(pieces: readonly Buffer[]): Promise<{ handshake: string; chunks: Chunk[] }> {
      await using client = await RawClient.connect(disks.server);
      for (const piece of pieces) {
        client.send(piece);
        // Two turns of the event loop: one to send the piece, one for the server to read it.
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
