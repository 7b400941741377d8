import { describe, expect, it } from "vitest";
import { listExports } from "../../src/nbd/index.js";
import { INFO, OPTION, OPTION_ERROR, OPTION_REPLY, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import {
  ack,
  answering,
  answeringUpTo,
  connectTo,
  FAST,
  go,
  recording,
  refuse,
} from "../support/mock-handshakes.js";
import {
  answer,
  COMMON_FLAGS,
  type ExportFacts,
  greeting,
  handshake,
  infoBlockSize,
  infoExport,
  MockServer,
  metaContext,
  optionReply,
  type Peer,
  type Script,
  u16,
  u32,
} from "../support/mock-server.js";

describe("option replies", () => {
  it.each<[string, Script, object]>([
    ["with another magic", answering(OPTION.GO, [ack(OPTION.GO).fill(1, 0, 8)]), { name: "ProtocolError" }],
    ["to another option", answering(OPTION.GO, [ack(OPTION.LIST)]), { name: "ProtocolError" }],
    [
      "of another type",
      answering(OPTION.GO, [optionReply(OPTION.GO, OPTION_REPLY.SERVER, u32(0))]),
      { name: "ProtocolError" },
    ],
    [
      "of a type yet unknown",
      answering(OPTION.GO, [optionReply(OPTION.GO, 1234)]),
      { name: "ProtocolError" },
    ],
    [
      "of four gigabytes",
      answering(OPTION.GO, [ack(OPTION.GO).fill(0xff, 16, 20)]),
      { name: "ProtocolError" },
    ],
    ["consenting to GO without a size", answering(OPTION.GO, go()), { name: "ProtocolError" }],
    ["with an INFO that is too short", answering(OPTION.GO, go(Buffer.alloc(1))), { name: "ProtocolError" }],
    [
      "with a size that is too short",
      answering(OPTION.GO, go(infoExport(1, 1).subarray(0, 11))),
      { name: "ProtocolError" },
    ],
    [
      "with a size that is too long",
      answering(OPTION.GO, go(Buffer.concat([infoExport(1, 1), u16(0)]))),
      { name: "ProtocolError" },
    ],
    [
      "with a size of 2^53",
      answering(OPTION.GO, go(infoExport(2n ** 53n, 1))),
      { code: "NBD_NUMBER_TOO_LARGE" },
    ],
    [
      "with a size of 2^63",
      answering(OPTION.GO, go(infoExport(2n ** 63n, 1))),
      { code: "NBD_NUMBER_TOO_LARGE" },
    ],
    [
      "with a size of 2^64 - 1",
      answering(OPTION.GO, go(infoExport(2n ** 64n - 1n, 1))),
      { code: "NBD_NUMBER_TOO_LARGE" },
    ],
    [
      "with block sizes of zero",
      answering(OPTION.GO, go(infoExport(1, 1), infoBlockSize(0, 0, 0))),
      { name: "ProtocolError" },
    ],
    [
      "with a minimum block of 513",
      answering(OPTION.GO, go(infoExport(1, 1), infoBlockSize(513, 4096, 4096))),
      { name: "ProtocolError" },
    ],
    [
      "with a minimum block of 128 KiB",
      answering(OPTION.GO, go(infoExport(1, 1), infoBlockSize(131_072, 131_072, 131_072))),
      { name: "ProtocolError" },
    ],
    [
      "with a maximum block below the preferred",
      answering(OPTION.GO, go(infoExport(1, 1), infoBlockSize(1, 4096, 512))),
      { name: "ProtocolError" },
    ],
    [
      "with a refusal in control characters",
      answering(OPTION.GO, [refuse(OPTION.GO, OPTION_ERROR.POLICY, "\u001b[2Jno")]),
      { name: "OptionError", message: expect.not.stringContaining("\u001b") },
    ],
    [
      "with a refusal of a number yet unknown",
      answering(OPTION.GO, [refuse(OPTION.GO, 0x80001234, "because")]),
      { name: "OptionError", serverText: "because" },
    ],
    [
      "with a refusal for want of TLS",
      answering(OPTION.EXTENDED_HEADERS, [refuse(OPTION.EXTENDED_HEADERS, OPTION_ERROR.TLS_REQD)]),
      { code: "NBD_TLS_REQUIRED" },
    ],
    [
      "with a refusal because of a shutdown",
      answering(OPTION.EXTENDED_HEADERS, [refuse(OPTION.EXTENDED_HEADERS, OPTION_ERROR.SHUTDOWN)]),
      { code: "NBD_OPTION_REFUSED", reply: "SHUTDOWN" },
    ],
  ])("%s are refused", async (_title, script, failure) => {
    expect(await connectTo(script)).toMatchObject(failure);
  });

  it.each<[string, number, Buffer, object]>([
    [
      "infos",
      OPTION.GO,
      optionReply(OPTION.GO, OPTION_REPLY.INFO, Buffer.concat([u16(999), Buffer.alloc(998)])),
      {},
    ],
    [
      "contexts",
      OPTION.SET_META_CONTEXT,
      optionReply(OPTION.SET_META_CONTEXT, OPTION_REPLY.META_CONTEXT, metaContext(1, "x".repeat(4000))),
      {},
    ],
    ["empty infos", OPTION.GO, optionReply(OPTION.GO, OPTION_REPLY.INFO, u16(999)), {}],
  ])("without end are not collected for ever: %s", async (_title, option, reply) => {
    const script: Script = async (peer) => {
      await answeringUpTo(peer, option);
      const many = Buffer.concat(new Array<Buffer>(64).fill(reply));
      while (!peer.socket.destroyed) {
        if (!peer.socket.write(many)) await Promise.race([peer.gone(), drained(peer)]);
      }
    };
    const options = { connectTimeoutMs: 30_000, optionalContexts: ["base:allocation"] };
    expect(await connectTo(script, options)).toMatchObject({
      name: "ProtocolError",
      message: expect.stringContaining("without end"),
    });
  });

  it("may contain unknown kinds of info", async () => {
    const replies = go(
      Buffer.concat([u16(77), Buffer.from("news")]),
      infoExport(4096, COMMON_FLAGS),
      u16(78),
    );
    expect(await connectTo(answering(OPTION.GO, replies))).toMatchObject({ size: 4096 });
  });

  it("may name and describe the export", async () => {
    const replies = go(
      Buffer.concat([u16(INFO.NAME), Buffer.from("canonical")]),
      Buffer.concat([u16(INFO.DESCRIPTION), Buffer.from("described")]),
      infoExport(4096, TRANSMISSION.HAS_FLAGS),
      infoBlockSize(512, 4096, 0xffffffff),
    );
    expect(await connectTo(answering(OPTION.GO, replies))).toMatchObject({
      name: "canonical",
      description: "described",
      blockSize: { minimum: 512, preferred: 4096, maximum: 0xffffffff },
    });
  });

  it("are understood byte by byte", async () => {
    const script: Script = async (peer) => {
      await peer.dribble(greeting());
      await peer.receive(4);
      while (true) {
        const { option, data } = await peer.option();
        await peer.dribble(Buffer.concat(answer(option, data, { contexts: ["base:allocation"] })));
        if (option === OPTION.GO) return peer.gone();
      }
    };
    expect(
      await connectTo(script, { metaContexts: ["base:allocation"], connectTimeoutMs: 10_000 }),
    ).toMatchObject({
      size: 1024 * 1024,
      contexts: ["base:allocation"],
    });
  });
});

function drained(peer: Peer): Promise<void> {
  return new Promise((resolve) => peer.socket.once("drain", resolve));
}

describe("meta contexts", () => {
  const set = (...contexts: readonly Uint8Array[]) => [
    ...contexts.map((context) => optionReply(OPTION.SET_META_CONTEXT, OPTION_REPLY.META_CONTEXT, context)),
    ack(OPTION.SET_META_CONTEXT),
  ];
  it.each<[string, Buffer[]]>([
    ["that nobody asked for", set(metaContext(1, "qemu:dirty-bitmap:other"))],
    ["granted twice", set(metaContext(1, "a:a"), metaContext(2, "a:a"))],
    ["with the same id", set(metaContext(1, "a:a"), metaContext(1, "b:b"))],
    ["without a name", set(u32(1))],
    ["with a name of 4097 bytes", set(metaContext(1, "x".repeat(4097)))],
  ])("%s are refused", async (_title, replies) => {
    expect(
      await connectTo(answering(OPTION.SET_META_CONTEXT, replies), { optionalContexts: ["a:a", "b:b"] }),
    ).toMatchObject({ name: "ProtocolError" });
  });

  it("are fewer when the server finds them too many, but never fewer than the mandatory ones", async () => {
    const queries: Buffer[] = [];
    const script: Script = async (peer) => {
      peer.send(greeting());
      await peer.receive(4);
      while (true) {
        const { option, data } = await peer.option();
        if (option === OPTION.SET_META_CONTEXT) queries.push(data);
        if (option === OPTION.SET_META_CONTEXT && queries.length === 1) {
          peer.send(refuse(option, OPTION_ERROR.TOO_BIG, "too many"));
        } else peer.send(...answer(option, data, { contexts: ["a:a", "b:b"] }));
        if (option === OPTION.GO) return peer.gone();
      }
    };
    const options = { metaContexts: ["a:a"], optionalContexts: ["b:b"] };
    expect(await connectTo(script, options)).toMatchObject({ contexts: ["a:a"] });
    expect(queries).toHaveLength(2);
  });

  it("that are mandatory and missing end the negotiation in good manners", async () => {
    const options: number[] = [];
    expect(await connectTo(recording(options), { metaContexts: ["a:a"] })).toMatchObject({
      missing: ["a:a"],
    });
    expect(options.at(-1)).toBe(OPTION.ABORT);
    expect(options).not.toContain(OPTION.GO);
  });

  it("need structured replies", async () => {
    const facts: ExportFacts = { protocol: "simple" };
    expect(await connectTo((peer) => handshake(peer, facts), { metaContexts: ["a:a"] })).toMatchObject({
      name: "MetaContextError",
    });
    const options: number[] = [];
    expect(await connectTo(recording(options, facts), { optionalContexts: ["a:a"] })).toMatchObject({
      contexts: [],
    });
    expect(options).not.toContain(OPTION.SET_META_CONTEXT);
  });

  it("with names that can't be sent are the caller's mistake", async () => {
    for (const name of ["a:\0", "x".repeat(4097)]) {
      const failure = await connectTo((peer) => handshake(peer), { metaContexts: [name] });
      expect(failure).toMatchObject({ code: "NBD_ARGUMENT" });
    }
  });
});

describe("listing exports", () => {
  const list = (...payloads: readonly Uint8Array[]) =>
    answering(OPTION.LIST, [
      ...payloads.map((payload) => optionReply(OPTION.LIST, OPTION_REPLY.SERVER, payload)),
      ack(OPTION.LIST),
    ]);

  it.each<[string, Uint8Array]>([
    ["an empty payload", Buffer.alloc(0)],
    ["a name longer than its reply", Buffer.concat([u32(5), Buffer.from("four")])],
    ["a name of four gigabytes", u32(0xffffffff)],
    ["a name of 4097 bytes", Buffer.concat([u32(4097), Buffer.alloc(4097, "x")])],
  ])("refuses %s", async (_title, payload) => {
    await using mock = await MockServer.start(list(payload));
    await expect(listExports(mock.uri, FAST)).rejects.toMatchObject({ name: "ProtocolError" });
  });

  it("passes on a refusal", async () => {
    await using mock = await MockServer.start(
      answering(OPTION.LIST, [refuse(OPTION.LIST, OPTION_ERROR.POLICY, "no")]),
    );
    await expect(listExports(mock.uri, FAST)).rejects.toMatchObject({
      option: "LIST",
      reply: "POLICY",
      serverText: "no",
    });
  });

  it("isn't possible with a server without a fixed handshake", async () => {
    await using mock = await MockServer.start(async (peer) => {
      peer.send(greeting(0));
      await peer.gone();
    });
    await expect(listExports(mock.uri, FAST)).rejects.toMatchObject({ name: "ProtocolError" });
  });
});
