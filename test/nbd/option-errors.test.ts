import { describe, expect, it } from "vitest";
import { listExports, NbdClient } from "../../src/nbd/index.js";
import { INFO, OPTION, OPTION_ERROR, OPTION_REPLY } from "../../src/nbd/wire/constants.js";
import { answering, connectTo, FAST, refuse } from "../support/mock-handshakes.js";
import {
  answer,
  greeting,
  handshake,
  MockServer,
  metaContext,
  optionReply,
  type Script,
} from "../support/mock-server.js";

/** Every error of the protocol, its code here, and what the message advises. */
const ERRORS: readonly [name: keyof typeof OPTION_ERROR, code: string, advice: RegExp][] = [
  ["POLICY", "NBD_OPTION_REFUSED", /configuration forbids it/],
  ["INVALID", "NBD_OPTION_REFUSED", /malformed/],
  ["PLATFORM", "NBD_OPTION_REFUSED", /where it runs/],
  ["TLS_REQD", "NBD_TLS_REQUIRED", /nbds:\/\//],
  ["UNKNOWN", "NBD_EXPORT_UNKNOWN", /list its exports/],
  ["SHUTDOWN", "NBD_OPTION_REFUSED", /about to end/],
  ["BLOCK_SIZE_REQD", "NBD_OPTION_REFUSED", /block sizes/],
  ["TOO_BIG", "NBD_OPTION_REFUSED", /fewer meta contexts/],
  ["EXT_HEADER_REQD", "NBD_OPTION_REFUSED", /extended headers/],
];

/** Refuses `option`, and records all options of the client. */
function refusing(option: number, error: number, seen: number[]): Script {
  return async (peer) => {
    peer.send(greeting());
    await peer.receive(4);
    while (true) {
      const request = await peer.option();
      seen.push(request.option);
      if (request.option === OPTION.ABORT) {
        peer.send(optionReply(OPTION.ABORT, OPTION_REPLY.ACK));
        return;
      }
      if (request.option === option) peer.send(refuse(option, error, "because I say so"));
      else peer.send(...answer(request.option, request.data, { contexts: ["a:a"] }));
    }
  };
}

describe("a refusal", () => {
  it.each(ERRORS)(
    "of GO with %s has its code, the server's text and the next step",
    async (name, code, advice) => {
      const seen: number[] = [];
      expect(await connectTo(refusing(OPTION.GO, OPTION_ERROR[name], seen))).toMatchObject({
        name: "OptionError",
        code,
        option: "GO",
        reply: name,
        serverText: "because I say so",
        message: expect.stringMatching(
          new RegExp(`the server refused GO with ${name}: "because I say so"; .*${advice.source}`),
        ),
      });
      expect(seen.at(-1)).toBe(OPTION.ABORT);
    },
  );

  it.each(ERRORS)("of a mandatory meta context with %s is reported as such", async (name, code) => {
    const seen: number[] = [];
    const script = refusing(OPTION.SET_META_CONTEXT, OPTION_ERROR[name], seen);
    expect(await connectTo(script, { metaContexts: ["a:a"] })).toMatchObject({
      code,
      option: "SET_META_CONTEXT",
      reply: name,
    });
    expect(seen).not.toContain(OPTION.GO);
  });

  it("of a meta context that the server sent before is still a refusal", async () => {
    const [context, refusal] = [metaContext(1, "a:a"), refuse(OPTION.SET_META_CONTEXT, OPTION_ERROR.UNSUP)];
    const script = answering(
      OPTION.SET_META_CONTEXT,
      [optionReply(OPTION.SET_META_CONTEXT, OPTION_REPLY.META_CONTEXT, context), refusal],
      {},
    );
    expect(await connectTo(script, { metaContexts: ["a:a"] })).toMatchObject({
      code: "NBD_META_CONTEXT_MISSING",
      missing: ["a:a"],
    });
  });

  it.each(ERRORS)("to list contexts with %s is reported as such", async (name, code) => {
    const script = refusing(OPTION.LIST_META_CONTEXT, OPTION_ERROR[name], []);
    expect(await connectTo(script, { listContexts: true })).toMatchObject({ code, reply: name });
  });

  it("to list contexts or set optional ones, for lack of the option, is accepted", async () => {
    const listing = refusing(OPTION.LIST_META_CONTEXT, OPTION_ERROR.UNSUP, []);
    expect(await connectTo(listing, { listContexts: true })).toMatchObject({ availableContexts: [] });
    const setting = refusing(OPTION.SET_META_CONTEXT, OPTION_ERROR.UNSUP, []);
    expect(await connectTo(setting, { optionalContexts: ["a:a"] })).toMatchObject({ contexts: [] });
    const mandatory = refusing(OPTION.SET_META_CONTEXT, OPTION_ERROR.UNSUP, []);
    expect(await connectTo(mandatory, { metaContexts: ["a:a"] })).toMatchObject({
      code: "NBD_META_CONTEXT_MISSING",
      missing: ["a:a"],
    });
  });

  it.each(["POLICY", "INVALID", "PLATFORM", "UNKNOWN", "TOO_BIG", "EXT_HEADER_REQD"] as const)(
    "of extended headers with %s leads to structured replies",
    async (name) => {
      const script = refusing(OPTION.EXTENDED_HEADERS, OPTION_ERROR[name], []);
      expect(await connectTo(script)).toMatchObject({ protocol: "structured" });
    },
  );

  it.each([...ERRORS, ["UNSUP", "", /./] as const])(
    "of TLS with %s ends the conversation with a goodbye, without a fallback",
    async (name) => {
      const seen: number[] = [];
      const script = refusing(OPTION.STARTTLS, OPTION_ERROR[name], seen);
      expect(await connectTo(script, { tls: { insecureSkipVerification: true } })).toMatchObject({
        name: "TlsError",
        code: "NBD_TLS_REFUSED",
        message: expect.stringContaining("because I say so"),
        cause: { reply: name },
      });
      expect(seen).toEqual([OPTION.STARTTLS, OPTION.ABORT]);
    },
  );

  it("to list exports is reported as such, and ends with a goodbye", async () => {
    const seen: number[] = [];
    await using mock = await MockServer.start(refusing(OPTION.LIST, OPTION_ERROR.PLATFORM, seen));
    await expect(listExports(mock.uri, FAST)).rejects.toMatchObject({ option: "LIST", reply: "PLATFORM" });
    expect(seen).toEqual([OPTION.LIST, OPTION.ABORT]);
  });

  it("doesn't delay a client whose goodbye is not answered", async () => {
    const script = answering(OPTION.GO, [refuse(OPTION.GO, OPTION_ERROR.POLICY)]);
    const before = Date.now();
    expect(await connectTo(script, { connectTimeoutMs: 30_000 })).toMatchObject({ reply: "POLICY" });
    expect(Date.now() - before).toBeLessThan(25_000);
  });
});

describe("the end of a negotiation", () => {
  it("is a disconnect if the caller aborts: with an option unanswered, nothing else may be sent", async () => {
    const options: number[] = [];
    const abort = new AbortController();
    const script: Script = async (peer) => {
      peer.send(greeting());
      await peer.receive(4);
      for (;;) {
        options.push((await peer.option()).option);
        setTimeout(() => abort.abort(), 20);
      }
    };
    await using mock = await MockServer.start(script);
    const { signal } = abort;
    await expect(NbdClient.connect(mock.uri, { signal })).rejects.toMatchObject({ code: "NBD_ABORTED" });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(options).toEqual([OPTION.EXTENDED_HEADERS]);
  });

  it("is a goodbye after listing exports", async () => {
    const options: number[] = [];
    const script: Script = async (peer) => {
      peer.send(greeting());
      await peer.receive(4);
      while (true) {
        const { option } = await peer.option();
        options.push(option);
        peer.send(optionReply(option, OPTION_REPLY.ACK));
        if (option === OPTION.ABORT) return;
      }
    };
    await using mock = await MockServer.start(script);
    expect(await listExports(mock.uri, FAST)).toEqual([]);
    expect(options).toEqual([OPTION.LIST, OPTION.ABORT]);
  });

  it("is a GO that requests the block sizes", async () => {
    const asked: Buffer[] = [];
    const onOption = (option: number, data: Buffer) => option === OPTION.GO && asked.push(data);
    await connectTo((peer) => handshake(peer, { onOption }));
    const [data = Buffer.alloc(0)] = asked;
    const at = 4 + data.readUInt32BE(0);
    const infos = Array.from({ length: data.readUInt16BE(at) }, (_, i) => data.readUInt16BE(at + 2 + 2 * i));
    expect(infos).toContain(INFO.BLOCK_SIZE);
  });
});
