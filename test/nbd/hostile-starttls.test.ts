import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Duplex } from "node:stream";
import { TLSSocket } from "node:tls";
import { describe, expect, it } from "vitest";
import { OPTION } from "../../src/nbd/wire/constants.js";
import { ack, answering, answeringUpTo, connectTo } from "../support/mock-handshakes.js";
import { answer, greeting, type Script } from "../support/mock-server.js";
import { describeWith } from "../support/tools.js";
import { makeAuthority, makeFolder } from "./servers.js";

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
    expect(await connectTo(script, TLS)).toMatchObject({
      name: "TlsError",
      code: "NBD_TLS_FAILED",
      hangUp: false,
    });
  });

  it("with hanging up instead of a TLS handshake fails", async () => {
    const script: Script = async (peer) => {
      await answeringUpTo(peer, OPTION.STARTTLS);
      peer.send(consent);
    };
    expect(await connectTo(script, { ...TLS, connectTimeoutMs: 30_000 })).toMatchObject({
      name: "TlsError",
      code: "NBD_TLS_FAILED",
      hangUp: true,
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

  const certified = async () => {
    const { path, ...folder } = await makeFolder();
    const { path: authority } = await makeAuthority({ path, ...folder }, "ours");
    const [ca, cert, key] = await Promise.all(
      ["ca-cert.pem", "server-cert.pem", "server-key.pem"].map((name) => readFile(join(authority, name))),
    );
    await folder[Symbol.asyncDispose]();
    if (ca === undefined || cert === undefined || key === undefined) throw new Error("no certificates");
    return { ca, cert, key };
  };

  /** Ends the handshake like any other server, but sends what `spoil` makes of its last flight in one piece. */
  const spoiling =
    (
      credentials: { readonly cert: Buffer; readonly key: Buffer },
      spoil: (flight: Buffer) => Buffer,
    ): Script =>
    async (peer) => {
      await answeringUpTo(peer, OPTION.STARTTLS);
      peer.send(consent);
      peer.socket.removeAllListeners("data");
      const flight: Buffer[] = [];
      const proxy = new Duplex({
        read: () => {},
        write: (bytes: Buffer, _encoding, done) => {
          if (flight.length === 0) setTimeout(() => peer.socket.write(spoil(Buffer.concat(flight))), 5);
          flight.push(bytes);
          done();
        },
      });
      peer.socket.on("data", (bytes) => proxy.push(bytes));
      const secure = new TLSSocket(proxy, { isServer: true, ...credentials });
      secure.on("error", () => {});
      await peer.gone();
    };

  describeWith(["certtool"], "with a real handshake", () => {
    it("and a broken record in the same packet as its end is a failure, not a crash", async () => {
      const { ca, ...credentials } = await certified();
      const record = Buffer.concat([Buffer.from([0x17, 3, 3, 0, 64]), Buffer.alloc(64, 7)]);
      for (const spoil of [
        (flight: Buffer) => Buffer.concat([flight, record]),
        (flight: Buffer) => Buffer.concat([flight, Buffer.from("plain text, for a change")]),
      ]) {
        const options = { tls: { ca, hostname: "localhost" }, connectTimeoutMs: 5000 };
        const before = Date.now();
        expect(await connectTo(spoiling(credentials, spoil), options)).toMatchObject({ name: "TlsError" });
        expect(Date.now() - before).toBeLessThan(2000);
      }
    });

    it("and hanging up right after it is the server's objection to the client", async () => {
      const { ca, ...credentials } = await certified();
      const script: Script = async (peer) => {
        await answeringUpTo(peer, OPTION.STARTTLS);
        peer.send(consent);
        peer.socket.removeAllListeners("data");
        const secure = new TLSSocket(peer.socket, { isServer: true, ...credentials });
        secure.on("error", () => {});
        secure.once("secure", () => secure.end());
        await peer.gone();
      };
      const options = { tls: { ca, hostname: "localhost" }, connectTimeoutMs: 5000 };
      expect(await connectTo(script, options)).toMatchObject({
        name: "TlsError",
        code: "NBD_TLS_FAILED",
        hangUp: true,
        message: expect.stringMatching(/closed the connection.*may want a client certificate/),
      });
    });
  });
});
