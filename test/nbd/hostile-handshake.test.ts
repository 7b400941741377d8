import { createServer } from "node:net";
import { describe, expect, it } from "vitest";
import { listExports, NbdClient } from "../../src/nbd/index.js";
import { INFO, OPTION, OPTION_ERROR, OPTION_REPLY, TRANSMISSION } from "../../src/nbd/wire/constants.js";
import {
  ALL_HANDSHAKE_FLAGS,
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
  u64,
} from "../support/mock-server.js";

const FAST = { connectTimeoutMs: 150 };

/** Behaves until `option` is asked, and answers that with `replies`. */
function answering(option: number, replies: readonly Uint8Array[], facts: ExportFacts = {}): Script {
  return async (peer) => {
    peer.send(greeting());
    await peer.receive(4);
    while (true) {
      const request = await peer.option();
      if (request.option === option) {
        peer.send(...replies);
        await peer.gone();
      }
      peer.send(...answer(request.option, request.data, facts));
    }
  };
}

/** Options of the client's in the order in which they came, up to its disappearance. */
function recording(options: number[], facts: ExportFacts = {}): Script {
  return async (peer) => {
    await handshake(peer, { ...facts, onOption: (option) => options.push(option) });
    await peer.gone();
  };
}

const ack = (option: number) => optionReply(option, OPTION_REPLY.ACK);
const go = (...infos: readonly Uint8Array[]) => [
  ...infos.map((info) => optionReply(OPTION.GO, OPTION_REPLY.INFO, info)),
  ack(OPTION.GO),
];
const refuse = (option: number, error: number, text = "") => optionReply(option, error, Buffer.from(text));

async function connectTo(script: Script, options = {}): Promise<unknown> {
  await using mock = await MockServer.start(script);
  try {
    await using client = await NbdClient.connect(mock.uri, { ...FAST, ...options });
    return client.export;
  } catch (error) {
    return error;
  }
}

describe("a greeting", () => {
  it.each<[string, Buffer, string]>([
    ["of an SSH server", Buffer.from("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), "NBD_NOT_NBD"],
    [
      "of an oldstyle server",
      Buffer.concat([u64(0x4e42444d41474943n), u64(0x420281861253n), Buffer.alloc(136)]),
      "NBD_NOT_NBD",
    ],
    ["of no known style", Buffer.concat([u64(0x4e42444d41474943n), u64(1), u16(3)]), "NBD_NOT_NBD"],
    ["cut short", greeting().subarray(0, 17), "NBD_CLOSED_BY_SERVER"],
  ])("%s is refused", async (_title, bytes, code) => {
    expect(await connectTo(async (peer) => peer.send(bytes))).toMatchObject({ code });
  });

  it("with flags yet unknown is answered with known ones only", async () => {
    let flags = -1;
    const script: Script = async (peer) => {
      peer.send(greeting(0xffff));
      flags = (await peer.receive(4)).readUInt32BE(0);
      await peer.gone();
    };
    await connectTo(script);
    expect(flags).toBe(ALL_HANDSHAKE_FLAGS);
  });

  it.each([0, 1, 2])("with only the flags %i is answered with no other", async (offered) => {
    let flags = -1;
    const script: Script = async (peer) => {
      peer.send(greeting(offered));
      flags = (await peer.receive(4)).readUInt32BE(0);
    };
    await connectTo(script);
    expect(flags).toBe(offered);
  });
});

describe("silence", () => {
  const steps: readonly [string, Script][] = [
    ["instead of a greeting", (peer) => peer.gone()],
    [
      "in the middle of the greeting",
      async (peer) => {
        peer.send(greeting().subarray(0, 10));
        await peer.gone();
      },
    ],
    ...[OPTION.EXTENDED_HEADERS, OPTION.STRUCTURED_REPLY, OPTION.SET_META_CONTEXT, OPTION.GO].flatMap(
      (option): [string, Script][] => [
        [`after option ${option}`, answering(option, [])],
        [`in the middle of the reply to option ${option}`, answering(option, [ack(option).subarray(0, 19)])],
        [
          `before the payload of the reply to option ${option}`,
          answering(option, [refuse(option, OPTION_ERROR.POLICY, "no").subarray(0, 21)]),
        ],
      ],
    ),
  ];
  it.each(steps)("%s ends in a time-out", async (_title, script) => {
    expect(await connectTo(script, { optionalContexts: ["base:allocation"] })).toMatchObject({
      name: "ConnectionError",
      code: "NBD_CONNECT_TIMEOUT",
    });
  });

  it.each(steps)("%s ends at once when the caller aborts", async (_title, script) => {
    const signal = AbortSignal.timeout(20);
    const options = { connectTimeoutMs: 60_000, signal, optionalContexts: ["base:allocation"] };
    expect(await connectTo(script, options)).toMatchObject({ code: "NBD_ABORTED" });
  });

  it.each(steps)("%s and then hanging up is told as such", async (_title, script) => {
    const hangingUp: Script = async (peer, index) => {
      setTimeout(() => peer.socket.end(), 20);
      await script(peer, index);
    };
    const options = { connectTimeoutMs: 60_000, optionalContexts: ["base:allocation"] };
    expect(await connectTo(hangingUp, options)).toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
  });

  it("of a server that accepts no connection is a matter of time, too", async () => {
    // 192.0.2.0/24 is for documentation: nobody answers, if packets get out at all.
    const failure = await NbdClient.connect("nbd://192.0.2.1/", FAST).catch((error: unknown) => error);
    expect(failure).toMatchObject({ name: "ConnectionError" });
  });
});

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

  it("of a kind yet unknown among the infos are no obstacle", async () => {
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

async function answeringUpTo(peer: Peer, last: number): Promise<void> {
  peer.send(greeting());
  await peer.receive(4);
  while (true) {
    const { option, data } = await peer.option();
    if (option === last) return;
    peer.send(...answer(option, data, {}));
  }
}

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
    const script: Script = async (peer) => {
      peer.send(greeting());
      await peer.receive(4);
      while (true) {
        const { option, data } = await peer.option();
        options.push(option);
        if (option === OPTION.ABORT) return;
        peer.send(...answer(option, data, {}));
      }
    };
    expect(await connectTo(script, { metaContexts: ["a:a"] })).toMatchObject({ missing: ["a:a"] });
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

describe("EXPORT_NAME", () => {
  const old =
    (flags: number, reply: Uint8Array): Script =>
    async (peer) => {
      peer.send(greeting(flags));
      await peer.receive(4);
      const { option, data } = await peer.option();
      expect([option, data.toString()]).toEqual([OPTION.EXPORT_NAME, "disk"]);
      peer.send(reply);
      await peer.gone();
    };
  const reply = Buffer.concat([u64(4096), u16(COMMON_FLAGS)]);

  it("is the way into a server without a fixed handshake", async () => {
    const zeroes = Buffer.alloc(124);
    expect(await connectTo(old(0, Buffer.concat([reply, zeroes])))).toMatchObject({
      size: 4096,
      protocol: "simple",
      canDf: false,
    });
    expect(await connectTo(old(2, reply))).toMatchObject({ size: 4096 });
    expect(await connectTo(old(0, reply))).toMatchObject({ code: "NBD_CONNECT_TIMEOUT" });
  });

  it("is the way into a server that doesn't know GO", async () => {
    const script: Script = async (peer) => {
      peer.send(greeting());
      await peer.receive(4);
      while (true) {
        const { option, data } = await peer.option();
        if (option === OPTION.EXPORT_NAME) {
          peer.send(reply);
          return peer.gone();
        }
        peer.send(
          ...(option === OPTION.GO ? [refuse(option, OPTION_ERROR.UNSUP)] : answer(option, data, {})),
        );
      }
    };
    expect(await connectTo(script)).toMatchObject({ size: 4096, protocol: "structured" });
  });

  it("is refused by hanging up, which the message explains", async () => {
    const script: Script = async (peer) => {
      peer.send(greeting(0));
      await peer.receive(4);
      await peer.option();
    };
    expect(await connectTo(script)).toMatchObject({
      code: "NBD_CLOSED_BY_SERVER",
      message: expect.stringMatching(/"disk".*doesn't exist/),
    });
  });
});

describe("STARTTLS", () => {
  const TLS = { tls: { insecureSkipVerification: true } };
  const consent = ack(OPTION.STARTTLS);

  it("is asked for before anything else, and nothing else when it is refused", async () => {
    const options: number[] = [];
    const script: Script = async (peer) => {
      peer.send(greeting());
      await peer.receive(4);
      while (true) {
        const { option, data } = await peer.option();
        options.push(option);
        if (option === OPTION.ABORT) return;
        peer.send(...answer(option, data, {}));
      }
    };
    expect(await connectTo(script, TLS)).toMatchObject({ name: "TlsError", code: "NBD_TLS_REFUSED" });
    expect(options[0]).toBe(OPTION.STARTTLS);
    expect(options).not.toContain(OPTION.GO);
  });

  it("with plain text after the server's consent is an attack", async () => {
    const injected = Buffer.concat([consent, ack(OPTION.STRUCTURED_REPLY)]);
    expect(await connectTo(answering(OPTION.STARTTLS, [injected]), TLS)).toMatchObject({
      name: "TlsError",
      code: "NBD_TLS_INJECTION",
    });
  });

  it("with garbage instead of a TLS handshake fails", async () => {
    const script: Script = async (peer) => {
      await answeringUpTo(peer, OPTION.STARTTLS);
      peer.send(consent);
      await peer.receive(10);
      peer.send(Buffer.from("this is not TLS at all, not even close to it"));
      await peer.gone();
    };
    expect(await connectTo(script, TLS)).toMatchObject({ name: "TlsError", code: "NBD_TLS_FAILED" });
  });

  it("with hanging up instead of a TLS handshake fails", async () => {
    const script: Script = async (peer) => {
      await answeringUpTo(peer, OPTION.STARTTLS);
      peer.send(consent);
    };
    expect(await connectTo(script, { ...TLS, connectTimeoutMs: 30_000 })).toMatchObject({
      name: expect.stringMatching(/TlsError|ConnectionError/),
    });
  });

  it("with silence instead of a TLS handshake ends in a time-out", async () => {
    expect(await connectTo(answering(OPTION.STARTTLS, [consent]), TLS)).toMatchObject({
      code: "NBD_CONNECT_TIMEOUT",
      message: expect.stringContaining("TLS handshake"),
    });
  });

  it("isn't possible with a server without a fixed handshake", async () => {
    expect(
      await connectTo(async (peer) => {
        peer.send(greeting(0));
        await peer.gone();
      }, TLS),
    ).toMatchObject({ code: "NBD_TLS_REFUSED" });
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

describe("an address", () => {
  it("may be an abstract socket", async () => {
    const name = `nbd-client-test-${process.pid}-${Date.now()}`;
    const server = createServer((socket) => socket.end("SSH-2.0-OpenSSH and much more"));
    await new Promise<void>((resolve) => server.listen(`\0${name}`, resolve));
    const failure = await NbdClient.connect(`nbd+unix:///?socket=%00${name}`, FAST).catch(
      (error: unknown) => error,
    );
    expect(failure).toMatchObject({ code: "NBD_NOT_NBD" });
    await new Promise((resolve) => server.close(resolve));
  });

  it("may have its host overridden", async () => {
    const server = createServer((socket) => socket.end("SSH-2.0-OpenSSH and much more"));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = server.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    const failure = NbdClient.connect(`nbd://host.invalid:${port}/`, { ...FAST, hostOverride: "127.0.0.1" });
    await expect(failure).rejects.toMatchObject({ code: "NBD_NOT_NBD" });
    await new Promise((resolve) => server.close(resolve));
  });

  it.each([
    ["nbd+unix:///?socket=/nonexistent/socket", /no such socket/],
    ["nbd://127.0.0.1:1/", /127\.0\.0\.1:1.*nobody listens/],
    ["nbd://localhost:1/", /localhost:1.*nobody listens/],
    ["nbd://host.invalid/", /host\.invalid/],
  ])("where nobody is: %s", async (uri, message) => {
    await expect(NbdClient.connect(uri)).rejects.toMatchObject({
      name: "ConnectionError",
      code: "NBD_CONNECT_FAILED",
      message: expect.stringMatching(message),
    });
  });

  it.each([
    { connectTimeoutMs: 0 },
    { idleTimeoutMs: 2 ** 31 },
    { connections: 0 },
    { reconnect: { attempts: 0 } },
  ])("with options that make no sense (%j) isn't even tried", async (options) => {
    await expect(NbdClient.connect("nbd://host.invalid/", options)).rejects.toMatchObject({
      code: "NBD_ARGUMENT",
    });
  });
});
