import { randomBytes } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MemoryDisk, NbdServer, type NbdServerEvent, type ServerTls } from "../../../src/nbd/server/index.js";
import { infoQuery, optionFrame, RawClient, u32 } from "./raw-client.js";
import { outputOf, runTool, temporaryDirectory, testWith } from "./tools.js";

const ABORT = 2;
const LIST = 3;
const STARTTLS = 5;
const GO = 7;
const ACK = 1;
const INVALID = 0x80000003;
const TLS_REQD = 0x80000005;

const SIZE = 3_000_000;
const KEY = randomBytes(32);

describe("TLS", () => {
  const disk = new MemoryDisk({ size: SIZE });
  disk.write(0, randomBytes(SIZE));
  const events: NbdServerEvent[] = [];
  let directory: Awaited<ReturnType<typeof temporaryDirectory>>;
  let certificates: string;
  let strangers: string;
  let keyFile: string;

  beforeAll(async () => {
    directory = await temporaryDirectory();
    certificates = join(directory.path, "certificates");
    strangers = join(directory.path, "strangers");
    keyFile = join(directory.path, "keys.psk");
    await writeFile(keyFile, `alice:${KEY.toString("hex")}\nmallory:${randomBytes(32).toString("hex")}\n`);
  });
  afterAll(() => directory[Symbol.asyncDispose]());

  async function listen(tls: ServerTls): Promise<NbdServer> {
    events.length = 0;
    return NbdServer.listen({
      exports: new Map([["disk", disk.freeze()]]),
      address: { host: "127.0.0.1", port: 0 },
      tls,
      onEvent: (event) => events.push(event),
    });
  }

  const presharedKeys = (): ServerTls => ({ presharedKeys: new Map([["alice", KEY]]) });

  /**
   * Makes a CA certificate and key, and certificates of \"localhost\" as server and as client, with certtool.
   */
  async function makeCertificates(path: string): Promise<void> {
    await mkdir(path);
    const file = (name: string) => join(path, name);
    const quiet = ["--no-text", "--key-type=ecdsa"];
    await writeFile(file("ca.cfg"), "cn = test authority\nca\ncert_signing_key\nexpiration_days = 2\n");
    await writeFile(
      file("server.cfg"),
      "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nsigning_key\n",
    );
    await writeFile(file("client.cfg"), "cn = client\ntls_www_client\nsigning_key\n");
    for (const name of ["ca", "server", "client"]) {
      await outputOf("certtool", "--generate-privkey", ...quiet, "--outfile", file(`${name}-key.pem`));
    }
    await outputOf(
      "certtool",
      "--generate-self-signed",
      ...quiet,
      `--load-privkey=${file("ca-key.pem")}`,
      `--template=${file("ca.cfg")}`,
      `--outfile=${file("ca-cert.pem")}`,
    );
    for (const name of ["server", "client"]) {
      await outputOf(
        "certtool",
        "--generate-certificate",
        ...quiet,
        `--load-ca-certificate=${file("ca-cert.pem")}`,
        `--load-ca-privkey=${file("ca-key.pem")}`,
        `--load-privkey=${file(`${name}-key.pem`)}`,
        `--template=${file(`${name}.cfg`)}`,
        `--outfile=${file(`${name}-cert.pem`)}`,
      );
    }
  }

  const made = new Map<string, Promise<void>>();

  /** Makes the certificates when a test first needs them. */
  function certificatesIn(path: string): Promise<void> {
    const making = made.get(path) ?? makeCertificates(path);
    made.set(path, making);
    return making;
  }

  const serverCertificate = async (): Promise<{ certificate: Buffer; key: Buffer }> => ({
    certificate: await readFile(join(certificates, "server-cert.pem")),
    key: await readFile(join(certificates, "server-key.pem")),
  });

  /** The URI of a server on 127.0.0.1 with the name in its certificate. */
  const withCertificates = (server: NbdServer, path: string): string =>
    `${server.uri("disk").replace("127.0.0.1", "localhost")}?tls-certificates=${path}`;

  describe("with certificates", () => {
    const withCerttool = testWith("certtool", "nbdcopy", "nbdinfo", "qemu-img");

    withCerttool("nbdcopy and qemu-img copy every byte", async () => {
      await certificatesIn(certificates);
      await using server = await listen(await serverCertificate());
      const copy = join(directory.path, "nbdcopy.raw");
      await outputOf("nbdcopy", withCertificates(server, certificates), copy);
      expect(Buffer.compare(await readFile(copy), disk.read(0, SIZE))).toBe(0);

      const info = await outputOf("nbdinfo", withCertificates(server, certificates));
      expect(info).toContain("protocol: newstyle-fixed with TLS");

      const { port } = new URL(server.uri("disk"));
      const qemuCopy = join(directory.path, "qemu.raw");
      await outputOf(
        "qemu-img",
        "convert",
        "--object",
        `tls-creds-x509,id=tls,endpoint=client,dir=${certificates}`,
        "--image-opts",
        `driver=nbd,host=localhost,port=${port},export=disk,tls-creds=tls`,
        "-O",
        "raw",
        qemuCopy,
      );
      expect(Buffer.compare((await readFile(qemuCopy)).subarray(0, SIZE), disk.read(0, SIZE))).toBe(0);
    });

    withCerttool(
      "a client of another authority is refused where client certificates are required",
      async () => {
        await certificatesIn(certificates);
        await certificatesIn(strangers);
        const clientCa = await readFile(join(certificates, "ca-cert.pem"));
        await using server = await listen({ ...(await serverCertificate()), clientCa });
        expect(await outputOf("nbdinfo", "--size", withCertificates(server, certificates))).toBe(`${SIZE}\n`);

        // A stranger who trusts our authority, but has a certificate of another one.
        await writeFile(join(strangers, "ca-cert.pem"), clientCa);
        expect((await runTool("nbdinfo", withCertificates(server, strangers))).code).toBe(1);
        await expect
          .poll(() => events.at(-1))
          .toMatchObject({ type: "disconnected", error: { code: "TLS_FAILED" } });
      },
    );

    withCerttool("a server with a certificate that is no use does not start", async () => {
      await expect(listen({ certificate: "no certificate", key: "no key" })).rejects.toThrow();
    });
  });

  describe("with pre-shared keys", () => {
    const withKeys = (server: NbdServer, user: string): string =>
      `${server.uri("disk").replace("nbds://", `nbds://${user}@`)}?tls-psk-file=${keyFile}`;

    testWith("nbdcopy")("nbdcopy copies every byte", async () => {
      await using server = await listen(presharedKeys());
      const copy = join(directory.path, "psk.raw");
      await outputOf("nbdcopy", withKeys(server, "alice"), copy);
      expect(Buffer.compare(await readFile(copy), disk.read(0, SIZE))).toBe(0);
      expect(events.filter((event) => event.type === "disconnected" && event.error !== undefined)).toEqual(
        [],
      );
    });

    testWith("qemu-img")("qemu-img can connect", async () => {
      await using server = await listen(presharedKeys());
      const path = join(directory.path, "qemu-psk");
      await mkdir(path);
      await writeFile(join(path, "keys.psk"), `alice:${KEY.toString("hex")}\n`);
      const { port } = new URL(server.uri("disk"));
      const info = await outputOf(
        "qemu-img",
        "info",
        "--object",
        `tls-creds-psk,id=tls,endpoint=client,dir=${path},username=alice`,
        "--image-opts",
        `driver=nbd,host=localhost,port=${port},export=disk,tls-creds=tls`,
      );
      expect(info).toContain("virtual size");
    });

    testWith("nbdinfo")("a user with a wrong key can't connect", async () => {
      await using server = await listen(presharedKeys());
      expect((await runTool("nbdinfo", withKeys(server, "mallory"))).code).toBe(1);
      await expect
        .poll(() => events.at(-1))
        .toMatchObject({ type: "disconnected", error: { code: "TLS_FAILED" } });
    });

    test.each(["TLSv1.2", "TLSv1.3"] as const)("a client may speak %s", async (version) => {
      await using server = await listen(presharedKeys());
      await using client = await RawClient.greeted(server);
      expect(await client.outcome(STARTTLS)).toBe(ACK);
      const secured = connectTls({
        socket: client.socket,
        minVersion: version,
        maxVersion: version,
        ciphers: "TLS_AES_128_GCM_SHA256:PSK+HIGH",
        pskCallback: () => ({ identity: "alice", psk: KEY }),
        // There is no certificate with a name to check.
        checkServerIdentity: () => undefined,
      });
      const reply = new Promise<Buffer>((resolve, reject) => {
        secured.once("data", resolve).once("error", reject);
      });
      secured.write(optionFrame(STARTTLS));
      expect((await reply).readUInt32BE(12)).toBe(INVALID);
      expect(secured.getProtocol()).toBe(version);
      secured.destroy();
    });
  });

  describe("before TLS", () => {
    test("every option except ABORT is refused with TLS_REQD", async () => {
      await using server = await listen(presharedKeys());
      await using client = await RawClient.greeted(server);
      expect(await client.outcome(LIST)).toBe(TLS_REQD);
      expect(await client.outcome(GO, infoQuery("disk"))).toBe(TLS_REQD);
      expect(await client.outcome(STARTTLS, u32(0))).toBe(INVALID);
      expect(await client.outcome(ABORT)).toBe(ACK);
      expect(await client.rest()).toHaveLength(0);
    });

    test("EXPORT_NAME closes the connection", async () => {
      await using server = await listen(presharedKeys());
      await using client = await RawClient.greeted(server);
      client.send(optionFrame(1, Buffer.from("disk")));
      await client.rest();
      await expect.poll(() => events.at(-1)).toMatchObject({ error: { code: "EXPORT_REFUSED" } });
    });

    test("plain text smuggled in after STARTTLS ends the connection", async () => {
      await using server = await listen(presharedKeys());
      await using client = await RawClient.greeted(server);
      client.send(optionFrame(STARTTLS), optionFrame(LIST));
      expect(await client.rest()).toHaveLength(0);
      await expect.poll(() => events.at(-1)).toMatchObject({ error: { code: "PLAINTEXT_BEFORE_TLS" } });
    });

    test("plain text instead of a TLS handshake ends the connection", async () => {
      await using server = await listen(presharedKeys());
      await using client = await RawClient.greeted(server);
      expect(await client.outcome(STARTTLS)).toBe(ACK);
      client.send(optionFrame(LIST));
      await client.rest();
      await expect.poll(() => events.at(-1)).toMatchObject({ error: { code: "TLS_FAILED" } });
    });

    test.each([
      { title: "with STARTTLS", leave: (client: RawClient) => client.socket.end(optionFrame(STARTTLS)) },
      {
        title: "after STARTTLS",
        leave: async (client: RawClient) => {
          await client.option(STARTTLS);
          client.socket.end();
        },
      },
      {
        title: "by a reset after STARTTLS",
        leave: async (client: RawClient) => {
          await client.option(STARTTLS);
          client.socket.resetAndDestroy();
        },
      },
    ])("a client that leaves $title is forgotten", async ({ leave }) => {
      await using server = await listen(presharedKeys());
      await using client = await RawClient.greeted(server);
      await leave(client);
      await expect
        .poll(() => events.at(-1))
        .toMatchObject({ type: "disconnected", error: { name: "ClientFault" } });
    });

    test("a client that stops in the middle of the TLS handshake is disconnected in time", async () => {
      await using server = await NbdServer.listen({
        exports: new Map(),
        address: { host: "127.0.0.1", port: 0 },
        tls: presharedKeys(),
        handshakeTimeoutMs: 200,
        onEvent: (event) => events.push(event),
      });
      await using client = await RawClient.greeted(server);
      expect(await client.outcome(STARTTLS)).toBe(ACK);
      await client.rest();
      await expect.poll(() => events.at(-1)).toMatchObject({ error: { code: "HANDSHAKE_TIMEOUT" } });
    });
  });
});
