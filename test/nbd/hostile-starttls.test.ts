import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Duplex } from "node:stream";
import { TLSSocket } from "node:tls";
import { describe, expect, it } from "vitest";
import { OPTION } from "../../src/nbd/wire/constants.js";
import { ack, answering, answeringUpTo, connectTo, recording } from "../support/mock-handshakes.js";
import { greeting, type Script } from "../support/mock-server.js";
import { describeWith } from "../support/tools.js";
import { makeAuthority, makeFolder } from "./servers.js";

describe("STARTTLS", () => {
  const TLS = { tls: { insecureSkipVerification: true } };
  const consent = ack(OPTION.STARTTLS);

  it("is requested before anything else, and nothing else follows a refusal", async () => {
    const options: number[] = [];
    expect(await connectTo(recording(options), TLS)).toMatchObject({
      name: "TlsError",
      code: "NBD_TLS_REFUSED",
    });
    expect(options[0]).toBe(OPTION.STARTTLS);
    expect(options).not.toContain(OPTION.GO);
  });

  it("is reported as an attack if plain text follows the server's consent", async () => {
    const injected = Buffer.concat([consent, ack(OPTION.STRUCTURED_REPLY)]);
    expect(await connectTo(answering(OPTION.STARTTLS, [injected]), TLS)).toMatchObject({
      name: "TlsError",
      code: "NBD_TLS_INJECTION",
    });
  });

  it("fails if garbage replaces the TLS handshake", async () => {
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

  it("fails if the server hangs up instead of a TLS handshake", async () => {
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

  it("times out if silence replaces the TLS handshake", async () => {
    expect(await connectTo(answering(OPTION.STARTTLS, [consent]), TLS)).toMatchObject({
      code: "NBD_CONNECT_TIMEOUT",
      message: expect.stringContaining("TLS handshake"),
    });
  });

  it("is not possible if the server has no fixed handshake", async () => {
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

  /** Completes the handshake like any server, but sends its last flight in one piece, changed by `spoil`. */
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
    it("fails without a crash if a broken record comes with its last packet", async () => {
      const { ca, ...credentials } = await certified();
      const record = Buffer.concat([Buffer.from([0x17, 3, 3, 0, 64]), Buffer.alloc(64, 7)]);
      for (const spoil of [
        (flight: Buffer) => Buffer.concat([flight, record]),
        (flight: Buffer) => Buffer.concat([flight, Buffer.from("plain text, for a change")]),
      ]) {
        const options = { tls: { ca, hostname: "localhost" }, connectTimeoutMs: 60_000 };
        const before = Date.now();
        expect(await connectTo(spoiling(credentials, spoil), options)).toMatchObject({ name: "TlsError" });
        expect(Date.now() - before).toBeLessThan(50_000);
      }
    });

    it("reports a server that hangs up right after it as an objection to the client's certificate", async () => {
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
