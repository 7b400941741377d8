import { createServer, type ListenOptions, type Server } from "node:net";
import { describe, expect, it } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { OPTION, OPTION_ERROR } from "../../src/nbd/wire/constants.js";
import { ack, answering, connectTo, FAST, refuse } from "../support/mock-handshakes.js";
import {
  ALL_HANDSHAKE_FLAGS,
  answer,
  COMMON_FLAGS,
  greeting,
  type Script,
  u16,
  u64,
} from "../support/mock-server.js";

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

  it("with unknown flags is answered with known ones only", async () => {
    let flags = -1;
    const script: Script = async (peer) => {
      peer.send(greeting(0xffff));
      flags = (await peer.receive(4)).readUInt32BE(0);
      await peer.gone();
    };
    await connectTo(script);
    expect(flags).toBe(ALL_HANDSHAKE_FLAGS);
  });

  it.each([0, 1, 2])("with only the flags %i is answered with these", async (offered) => {
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
  const WISHES = { optionalContexts: ["base:allocation"], listContexts: true };
  const steps: readonly [string, Script][] = [
    ["instead of a greeting", (peer) => peer.gone()],
    [
      "in the middle of the greeting",
      async (peer) => {
        peer.send(greeting().subarray(0, 10));
        await peer.gone();
      },
    ],
    ...[
      OPTION.EXTENDED_HEADERS,
      OPTION.STRUCTURED_REPLY,
      OPTION.LIST_META_CONTEXT,
      OPTION.SET_META_CONTEXT,
      OPTION.GO,
    ].flatMap((option): [string, Script][] => [
      [`after option ${option}`, answering(option, [])],
      [`in the middle of the reply to option ${option}`, answering(option, [ack(option).subarray(0, 19)])],
      [
        `before the payload of the reply to option ${option}`,
        answering(option, [refuse(option, OPTION_ERROR.POLICY, "no").subarray(0, 21)]),
      ],
    ]),
  ];
  it.each(steps)("%s ends in a time-out", async (_title, script) => {
    expect(await connectTo(script, WISHES)).toMatchObject({
      name: "ConnectionError",
      code: "NBD_CONNECT_TIMEOUT",
    });
  });

  it.each(steps)("%s ends at once when the caller aborts", async (_title, script) => {
    const signal = AbortSignal.timeout(20);
    const options = { ...WISHES, connectTimeoutMs: 60_000, signal };
    expect(await connectTo(script, options)).toMatchObject({ code: "NBD_ABORTED" });
  });

  it.each(steps)("%s and then hanging up is reported as such", async (_title, script) => {
    const hangingUp: Script = async (peer, index) => {
      setTimeout(() => peer.socket.end(), 20);
      await script(peer, index);
    };
    const options = { ...WISHES, connectTimeoutMs: 60_000 };
    expect(await connectTo(hangingUp, options)).toMatchObject({ code: "NBD_CLOSED_BY_SERVER" });
  });

  it("of a host that never accepts the connection ends in a connection error", async () => {
    // 192.0.2.0/24 is reserved for documentation: nobody answers, even if packets can leave.
    const failure = await NbdClient.connect("nbd://192.0.2.1/", FAST).catch((error: unknown) => error);
    expect(failure).toMatchObject({ name: "ConnectionError" });
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

  it("opens an export of a server without a fixed handshake", async () => {
    const zeroes = Buffer.alloc(124);
    expect(await connectTo(old(0, Buffer.concat([reply, zeroes])))).toMatchObject({
      size: 4096,
      protocol: "simple",
      canDf: false,
    });
    expect(await connectTo(old(2, reply))).toMatchObject({ size: 4096 });
    expect(await connectTo(old(0, reply))).toMatchObject({ code: "NBD_CONNECT_TIMEOUT" });
  });

  it("opens an export of a server that doesn't know GO", async () => {
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

  it("is refused by a closed connection, which the message explains", async () => {
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

describe("an address", () => {
  /** Nobody who speaks NBD, so a client that has found its way there says so. */
  async function sshServer(where: ListenOptions): Promise<Server> {
    const server = createServer((socket) => socket.end("SSH-2.0-OpenSSH and much more"));
    await new Promise<void>((resolve) => server.listen(where, resolve));
    return server;
  }

  it("may be an abstract socket", async () => {
    const name = `nbd-client-test-${process.pid}-${Date.now()}`;
    await using _server = await sshServer({ path: `\0${name}` });
    const failure = NbdClient.connect(`nbd+unix:///?socket=%00${name}`, FAST);
    await expect(failure).rejects.toMatchObject({ code: "NBD_NOT_NBD" });
  });

  it("may have its host overridden", async () => {
    await using server = await sshServer({ port: 0, host: "127.0.0.1" });
    const address = server.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    const failure = NbdClient.connect(`nbd://host.invalid:${port}/`, { ...FAST, hostOverride: "127.0.0.1" });
    await expect(failure).rejects.toMatchObject({ code: "NBD_NOT_NBD" });
  });

  it.each([
    ["nbd+unix:///?socket=/nonexistent/socket", /no such socket/],
    ["nbd://127.0.0.1:1/", /127\.0\.0\.1:1.*nobody listens/],
    ["nbd://localhost:1/", /localhost:1.*nobody listens/],
    ["nbd://host.invalid/", /host\.invalid/],
  ])("is reported with the reason if nobody listens there: %s", async (uri, message) => {
    await expect(NbdClient.connect(uri)).rejects.toMatchObject({
      name: "ConnectionError",
      code: "NBD_CONNECT_FAILED",
      message: expect.stringMatching(message),
    });
  });

  it("can't have a host override if it is a Unix socket, nor an empty host", async () => {
    const failure = { code: "NBD_ARGUMENT" };
    const unix = NbdClient.connect("nbd+unix:///?socket=/nonexistent", { hostOverride: "localhost" });
    await expect(unix).rejects.toMatchObject(failure);
    const nowhere = { transport: { kind: "tcp", host: "", port: 1 }, exportName: "" } as const;
    await expect(NbdClient.connect(nowhere)).rejects.toMatchObject(failure);
  });

  it.each([
    { connectTimeoutMs: 0 },
    { idleTimeoutMs: 2 ** 31 },
    { minRate: -1 },
    { minRateMs: 0 },
    { mapTimeoutMs: 0 },
    { maxExtents: 1.5 },
    { connections: 0 },
    { reconnect: { attempts: 0 } },
    { hostOverride: "" },
    { hostOverride: "localhost\0.evil" },
  ])("is not even tried with invalid options: %j", async (options) => {
    await expect(NbdClient.connect("nbd://host.invalid/", options)).rejects.toMatchObject({
      code: "NBD_ARGUMENT",
    });
  });
});
