import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  MemoryDisk,
  NbdServer,
  type NbdServerEvent,
  type ServedExport,
} from "../../../src/nbd/server/index.js";
import { counted, infoQuery, metaQuery, optionFrame, RawClient, u16, u32, u64 } from "./raw-client.js";
import { temporaryDirectory } from "./tools.js";

const EXPORT_NAME = 1;
const ABORT = 2;
const LIST = 3;
const STARTTLS = 5;
const INFO = 6;
const GO = 7;
const STRUCTURED_REPLY = 8;
const LIST_META_CONTEXT = 9;
const SET_META_CONTEXT = 10;
const EXTENDED_HEADERS = 11;

const ACK = 1;
const UNSUP = 0x80000001;
const POLICY = 0x80000002;
const INVALID = 0x80000003;
const UNKNOWN = 0x80000006;
const BLOCK_SIZE_REQD = 0x80000008;
const TOO_BIG = 0x80000009;
const EXT_HEADER_REQD = 0x8000000a;

const SIZE = 1_000_003;
/** HAS_FLAGS, READ_ONLY and CAN_MULTI_CONN; DF too with structured replies. */
const FLAGS = 0x103;
const FLAGS_WITH_DF = 0x183;

describe("handshake", () => {
  const disk = new MemoryDisk({ size: SIZE });
  disk.startBitmap("a");
  disk.startBitmap("b");
  const picky: ServedExport = {
    ...disk.freeze(),
    description: "moves whole sectors",
    blockSize: { minimum: 512, preferred: 4096, maximum: 65536 },
  };
  const events: NbdServerEvent[] = [];
  let directory: Awaited<ReturnType<typeof temporaryDirectory>>;
  let server: NbdServer;

  beforeAll(async () => {
    directory = await temporaryDirectory();
    server = await NbdServer.listen({
      exports: new Map([
        ["disk", disk.freeze()],
        ["picky", picky],
      ]),
      address: { path: join(directory.path, "nbd.sock") },
      onEvent: (event) => events.push(event),
    });
  });
  afterAll(async () => {
    await server.close();
    await directory[Symbol.asyncDispose]();
  });

  /** Waits for the end of the latest connection, and returns the reason. */
  const lastFault = async (client: RawClient): Promise<unknown> => {
    await client.rest();
    const connection = events.findLast(({ type }) => type === "connected");
    if (connection?.type !== "connected") throw new Error("nobody connected");
    const isItsEnd = (event: NbdServerEvent) =>
      event.type === "disconnected" && event.connection === connection.connection;
    await expect.poll(() => events.some(isItsEnd)).toBe(true);
    const end = events.find(isItsEnd);
    return end?.type === "disconnected" ? end.error : undefined;
  };

  test("greets with both magics, FIXED_NEWSTYLE and NO_ZEROES", async () => {
    await using client = await RawClient.connect(server);
    expect(await client.read(18)).toEqual(Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]));
  });

  test("hangs up on client flags that it did not offer", async () => {
    await using client = await RawClient.greeted(server, 4);
    expect(await lastFault(client)).toMatchObject({ code: "BAD_CLIENT_FLAGS" });
  });

  test("hangs up on something that is not an option", async () => {
    await using client = await RawClient.greeted(server);
    client.send(Buffer.from("GET / HTTP/1.1\r\n\r\n"));
    expect(await lastFault(client)).toMatchObject({ code: "BAD_MAGIC" });
  });

  test("answers ABORT, and accepts it as a proper goodbye", async () => {
    await using client = await RawClient.greeted(server);
    expect(await client.outcome(ABORT)).toBe(ACK);
    expect(await lastFault(client)).toBeUndefined();
  });

  test("reports a client that disconnects without a goodbye", async () => {
    await using client = await RawClient.greeted(server);
    client.socket.end();
    expect(await lastFault(client)).toMatchObject({ code: "DISCONNECTED" });
  });

  describe("EXPORT_NAME", () => {
    test.each([
      { clientFlags: 1, padding: 124, title: "pads with zeroes" },
      { clientFlags: 3, padding: 0, title: "leaves the zeroes out if the client says so" },
    ])("$title", async ({ clientFlags, padding }) => {
      await using client = await RawClient.greeted(server, clientFlags);
      client.send(optionFrame(EXPORT_NAME, Buffer.from("disk")));
      expect(await client.read(10)).toEqual(Buffer.concat([u64(SIZE), u16(FLAGS)]));
      expect(await client.read(padding)).toEqual(Buffer.alloc(padding));
      client.socket.end();
      expect(await client.rest()).toHaveLength(0);
    });

    test.each([
      { title: "an unknown name", name: Buffer.from("nothing") },
      { title: "a name that is not UTF-8", name: Buffer.from([0xff]) },
      { title: "a name that is longer than strings may be", name: Buffer.alloc(4097, "x") },
      { title: "an endless name", name: Buffer.alloc(300_000, "x") },
    ])("hangs up on $title", async ({ name }) => {
      await using client = await RawClient.greeted(server);
      client.send(optionFrame(EXPORT_NAME, name));
      expect(await lastFault(client)).toMatchObject({ code: "EXPORT_REFUSED" });
    });

    test("hangs up after extended headers", async () => {
      await using client = await RawClient.greeted(server);
      await client.option(EXTENDED_HEADERS);
      client.send(optionFrame(EXPORT_NAME, Buffer.from("disk")));
      expect(await lastFault(client)).toMatchObject({ code: "EXPORT_REFUSED" });
    });
  });

  describe("INFO and GO", () => {
    test.each([INFO, GO])("option %i returns the requested infos, and always the export", async (option) => {
      await using client = await RawClient.greeted(server);
      await client.option(STRUCTURED_REPLY);
      const replies = await client.option(option, infoQuery("picky", 1, 2, 3, 999));
      expect(replies.map(({ type, data }) => ({ type, data }))).toEqual([
        { type: 3, data: Buffer.concat([u16(0), u64(SIZE), u16(FLAGS_WITH_DF)]) },
        { type: 3, data: Buffer.concat([u16(1), Buffer.from("picky")]) },
        { type: 3, data: Buffer.concat([u16(2), Buffer.from("moves whole sectors")]) },
        { type: 3, data: Buffer.concat([u16(3), u32(512), u32(4096), u32(65536)]) },
        { type: ACK, data: Buffer.alloc(0) },
      ]);
    });

    test("a client that doesn't ask for unusual block sizes is told to, and may try again", async () => {
      await using client = await RawClient.greeted(server);
      expect(await client.outcome(GO, infoQuery("picky"))).toBe(BLOCK_SIZE_REQD);
      expect(await client.outcome(GO, infoQuery("picky", 3))).toBe(ACK);
    });

    test("an unknown export is an error with a text, and the connection goes on", async () => {
      await using client = await RawClient.greeted(server);
      const [reply] = await client.option(INFO, infoQuery("nothing"));
      expect(reply?.type).toBe(UNKNOWN);
      expect(reply?.data.toString()).toContain('"nothing"');
      expect(await client.outcome(GO, infoQuery("disk"))).toBe(ACK);
    });
  });

  describe("malformed data is answered with INVALID, and the connection goes on", () => {
    test.each([
      { title: "GO without data", option: GO, data: Buffer.alloc(0) },
      { title: "GO with a name longer than the data", option: GO, data: Buffer.concat([u32(5), u16(0)]) },
      {
        title: "GO that announces 4 GiB of name",
        option: GO,
        data: Buffer.concat([u32(0xffffffff), u16(0)]),
      },
      {
        title: "GO with fewer infos than announced",
        option: GO,
        data: Buffer.concat([counted("disk"), u16(2), u16(1)]),
      },
      {
        title: "GO with more data than announced",
        option: GO,
        data: Buffer.concat([infoQuery("disk"), u16(1)]),
      },
      { title: "GO with NUL in the name", option: GO, data: infoQuery("di\0sk") },
      { title: "LIST with data", option: LIST, data: u32(0) },
      { title: "STRUCTURED_REPLY with data", option: STRUCTURED_REPLY, data: u32(0) },
      { title: "EXTENDED_HEADERS with data", option: EXTENDED_HEADERS, data: u32(0) },
      {
        title: "LIST_META_CONTEXT before structured replies",
        option: LIST_META_CONTEXT,
        data: metaQuery("disk"),
      },
      {
        title: "SET_META_CONTEXT before structured replies",
        option: SET_META_CONTEXT,
        data: metaQuery("disk"),
      },
    ])("$title", async ({ option, data }) => {
      await using client = await RawClient.greeted(server);
      expect(await client.outcome(option, data)).toBe(INVALID);
      expect(await client.outcome(GO, infoQuery("disk"))).toBe(ACK);
    });

    test("SET_META_CONTEXT that announces 4 billion queries", async () => {
      await using client = await RawClient.greeted(server);
      await client.option(STRUCTURED_REPLY);
      const data = Buffer.concat([counted("disk"), u32(0xffffffff), counted("base:allocation")]);
      expect(await client.outcome(SET_META_CONTEXT, data)).toBe(INVALID);
      expect(await client.outcome(ABORT)).toBe(ACK);
    });
  });

  test("skips data that is too large to read", async () => {
    await using client = await RawClient.greeted(server);
    expect(await client.outcome(GO, Buffer.alloc(1_000_000))).toBe(TOO_BIG);
    expect(await client.outcome(ABORT)).toBe(ACK);
  });

  test("refuses PEEK_EXPORT and unknown options", async () => {
    await using client = await RawClient.greeted(server);
    expect(await client.outcome(4)).toBe(UNSUP);
    expect(await client.outcome(4711, Buffer.from("data"))).toBe(UNSUP);
  });

  test("refuses STARTTLS where there is no TLS", async () => {
    await using client = await RawClient.greeted(server);
    expect(await client.outcome(STARTTLS)).toBe(POLICY);
  });

  test("structured replies and extended headers are negotiated once, and only upwards", async () => {
    await using client = await RawClient.greeted(server);
    expect(await client.outcome(STRUCTURED_REPLY)).toBe(ACK);
    expect(await client.outcome(STRUCTURED_REPLY)).toBe(INVALID);
    expect(await client.outcome(EXTENDED_HEADERS)).toBe(ACK);
    expect(await client.outcome(EXTENDED_HEADERS)).toBe(INVALID);
    expect(await client.outcome(STRUCTURED_REPLY)).toBe(EXT_HEADER_REQD);
  });

  describe("meta contexts", () => {
    const names = async (client: RawClient, option: number, ...queries: string[]): Promise<string[]> => {
      const replies = await client.option(option, metaQuery("disk", ...queries));
      expect(replies.at(-1)?.type).toBe(ACK);
      return replies.slice(0, -1).map(({ data }) => data.subarray(4).toString());
    };

    test.each([
      { queries: [], found: ["base:allocation", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"] },
      { queries: ["base:"], found: ["base:allocation"] },
      { queries: ["qemu:"], found: ["qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"] },
      { queries: ["qemu:dirty-bitmap:"], found: ["qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"] },
      {
        queries: ["qemu:dirty-bitmap:b", "base:allocation"],
        found: ["base:allocation", "qemu:dirty-bitmap:b"],
      },
      { queries: ["qemu:dirty", "x:", "base:alloc"], found: [] },
    ])("LIST_META_CONTEXT $queries finds $found", async ({ queries, found }) => {
      await using client = await RawClient.greeted(server);
      await client.option(STRUCTURED_REPLY);
      expect(await names(client, LIST_META_CONTEXT, ...queries)).toEqual(found);
    });

    test("SET_META_CONTEXT takes full names only, and gives each its own id", async () => {
      await using client = await RawClient.greeted(server);
      await client.option(STRUCTURED_REPLY);
      expect(
        await names(client, SET_META_CONTEXT, "base:", "qemu:dirty-bitmap:", "qemu:dirty-bitmap:c"),
      ).toEqual([]);
      const replies = await client.option(
        SET_META_CONTEXT,
        metaQuery("disk", "qemu:dirty-bitmap:b", "base:allocation"),
      );
      const ids = replies.filter(({ type }) => type === 4).map(({ data }) => data.readUInt32BE(0));
      expect(new Set(ids).size).toBe(2);
    });

    test("a failed SET_META_CONTEXT leaves no context chosen", async () => {
      await using client = await RawClient.greeted(server);
      await client.option(STRUCTURED_REPLY);
      await client.option(SET_META_CONTEXT, metaQuery("disk", "base:allocation"));
      expect(await client.outcome(SET_META_CONTEXT, metaQuery("nothing", "base:allocation"))).toBe(UNKNOWN);
      await client.option(GO, infoQuery("disk"));
      expect(events.findLast(({ type }) => type === "export-opened")).toMatchObject({ contexts: [] });
    });

    test("contexts that were chosen for another export don't count", async () => {
      await using client = await RawClient.greeted(server);
      await client.option(STRUCTURED_REPLY);
      await client.option(SET_META_CONTEXT, metaQuery("disk", "base:allocation"));
      await client.option(GO, infoQuery("picky", 3));
      expect(events.findLast(({ type }) => type === "export-opened")).toMatchObject({
        exportName: "picky",
        contexts: [],
      });
    });
  });

  test("the URI of a server on all interfaces works for a client on this machine", async () => {
    await using everywhere = await NbdServer.listen({
      exports: new Map([["a b/c", disk.freeze()]]),
      address: { host: "0.0.0.0", port: 0 },
    });
    expect(everywhere.uri("a b/c")).toMatch(/^nbd:\/\/localhost:\d+\/a%20b%2Fc$/);
  });

  test("exports behind a function are found, one at a time, but not listed", async () => {
    await using lazy = await NbdServer.listen({
      exports: async (name) => (name.startsWith("point-") ? disk.freeze() : undefined),
      address: { path: join(directory.path, "lazy.sock") },
    });
    await using client = await RawClient.greeted(lazy);
    expect(await client.outcome(LIST)).toBe(POLICY);
    expect(await client.outcome(INFO, infoQuery("else"))).toBe(UNKNOWN);
    expect(await client.outcome(GO, infoQuery("point-7"))).toBe(ACK);
  });
});
