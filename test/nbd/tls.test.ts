import { mkdir, readFile, writeFile } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it, onTestFinished, vi } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { listExports, NbdClient, TlsError } from "../../src/nbd/index.js";
import { describeWith, findTool } from "../support/tools.js";
import {
  type Authority,
  type Folder,
  listensOn,
  makeAuthority,
  makeFolder,
  pattern,
  startNbdkit,
  startQemu,
  startServer,
  uriOf,
} from "./servers.js";

describeWith(["qemu-nbd", "nbdkit", "certtool", "psktool"], "TLS", () => {
  let folder: Folder;
  let ours: Authority;
  let strangers: Authority;
  let image: string;
  let keys: string;

  beforeAll(async () => {
    folder = await makeFolder();
    ours = await makeAuthority(folder, "ours");
    strangers = await makeAuthority(folder, "strangers");
    image = join(folder.path, "disk.raw");
    await writeFile(image, pattern(0, 3 * 1024 * 1024));
    await mkdir(join(folder.path, "psk"));
    keys = join(folder.path, "psk", "keys.psk");
    await execa(findTool("psktool") ?? "psktool", ["-u", "alice", "-p", keys]);
  });
  afterAll(async () => {
    await folder[Symbol.asyncDispose]();
  });

  const x509 = () => [
    `--object=tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir=${ours.path}`,
    "--tls-creds=tls0",
  ];
  const qemuWithCertificates = () => startQemu(folder, ...x509(), "-r", "-f", "raw", image);

  async function readAll(uri: string, options = {}): Promise<NbdClient> {
    const client = await NbdClient.connect(uri, options);
    const target = Buffer.alloc(client.export.size);
    await client.read(0, target);
    expect(target.equals(pattern(0, client.export.size))).toBe(true);
    expect(client.export.tls).toBe(true);
    return client;
  }

  it("reads over a unix socket with certificates on both sides", async () => {
    await using server = await qemuWithCertificates();
    const uri = uriOf(server.socket, "", `tls-certificates=${ours.path}&tls-hostname=localhost`, "nbds");
    await using client = await readAll(uri, { metaContexts: ["base:allocation"] });
    expect(client.export.protocol).not.toBe("simple");
    expect(await listExports(uri)).toEqual([{ name: "" }]);
  });

  it.skipIf(!("transfer" in ArrayBuffer.prototype))(
    "returns the memory of the records that it has copied",
    async () => {
      await using server = await qemuWithCertificates();
      const given = vi.spyOn(
        ArrayBuffer.prototype as unknown as { transfer(length: number): unknown },
        "transfer",
      );
      onTestFinished(() => given.mockRestore());
      const uri = uriOf(server.socket, "", `tls-certificates=${ours.path}&tls-hostname=localhost`, "nbds");
      await using _client = await readAll(uri);
      // A record has 16 KiB at most; now and then one is a part of a larger block, which is not returned.
      expect(given.mock.calls.filter(([length]) => length === 0).length).toBeGreaterThan(3 * 64 * 0.9);
    },
  );

  it("reads over TCP with certificates on both sides", async () => {
    const port = await freePort();
    const args = ["-p", `${port}`, "-b", "127.0.0.1", "-t", ...x509(), "-r", "-f", "raw", image];
    await using _server = await startServer("qemu-nbd", args, () => listensOn(port));
    const uri = `nbds://127.0.0.1:${port}/?tls-certificates=${ours.path}&tls-hostname=localhost`;
    await using _client = await readAll(uri);
  });

  it("reconnects to a server that hangs up during a handshake, as when it restarts", async () => {
    await using server = await qemuWithCertificates();
    const clients: Socket[] = [];
    const relay = createServer((client) => {
      const index = clients.push(client) - 1;
      const upstream = connect(server.socket);
      upstream.pipe(client);
      client.on("data", (bytes: Buffer) => {
        // The record type of a TLS handshake.
        if (index === 1 && bytes[0] === 0x16) client.destroy();
        else upstream.write(bytes);
      });
      client.on("close", () => upstream.destroy());
      client.on("error", () => {});
      upstream.on("error", () => {});
    });
    const socket = join(folder.path, "relay.sock");
    await new Promise<void>((resolve) => relay.listen(socket, resolve));
    const uri = uriOf(socket, "", `tls-certificates=${ours.path}&tls-hostname=localhost`, "nbds");
    await using client = await NbdClient.connect(uri, { reconnect: { delayMs: 1 } });
    clients[0]?.destroy();
    const target = Buffer.alloc(512);
    await client.read(0, target);
    expect(target.equals(pattern(0, 512))).toBe(true);
    expect(clients).toHaveLength(3);
    relay.close();
  });

  it("accepts certificates from the options too", async () => {
    await using server = await qemuWithCertificates();
    const [ca, cert, key] = await Promise.all(
      ["ca-cert.pem", "client-cert.pem", "client-key.pem"].map((name) => readFile(join(ours.path, name))),
    );
    const tls = { ...(ca && { ca }), ...(cert && { cert }), ...(key && { key }), hostname: "localhost" };
    await using _client = await readAll(uriOf(server.socket), { tls });
  });

  it("rejects a server whose certificate another CA signed", async () => {
    await using server = await qemuWithCertificates();
    const uri = uriOf(server.socket, "", `tls-certificates=${strangers.path}&tls-hostname=localhost`, "nbds");
    await expect(NbdClient.connect(uri)).rejects.toMatchObject({
      name: "TlsError",
      code: "NBD_TLS_FAILED",
    });
  });

  it("rejects a server whose certificate is for another host", async () => {
    await using server = await qemuWithCertificates();
    const uri = uriOf(server.socket, "", `tls-certificates=${ours.path}&tls-hostname=elsewhere.test`, "nbds");
    await expect(NbdClient.connect(uri)).rejects.toThrow(/elsewhere\.test/);
  });

  it("fails cleanly if the server rejects the client's certificate", async () => {
    await using server = await qemuWithCertificates();
    const [cert, key] = ["client-cert.pem", "client-key.pem"].map((name) => join(strangers.path, name));
    const tls = {
      ca: await readFile(join(ours.path, "ca-cert.pem")),
      cert: await readFile(cert ?? ""),
      key: await readFile(key ?? ""),
      hostname: "localhost",
    };
    await expect(NbdClient.connect(uriOf(server.socket), { tls })).rejects.toThrow();
  });

  it("skips the verification only if the URI and an insecure option agree", async () => {
    await using server = await startNbdkit(folder, ...nbdkitTls(), "file", image);
    const uri = uriOf(server.socket, "", "tls-verify-peer=0", "nbds");
    await expect(NbdClient.connect(uri)).rejects.toMatchObject({ code: "NBD_TLS_CONFIG" });
    await using _client = await readAll(uri, { tls: { insecureSkipVerification: true } });
  });

  const nbdkitTls = () => ["--tls=require", `--tls-certificates=${ours.path}`];

  it.each(["NORMAL", "NORMAL:-VERS-ALL:+VERS-TLS1.2"])(
    "reads with a pre-shared key from qemu-nbd (%s)",
    async (priority) => {
      const creds = `--object=tls-creds-psk,id=tls0,endpoint=server,dir=${join(folder.path, "psk")},priority=${priority}`;
      await using server = await startQemu(folder, creds, "--tls-creds=tls0", "-r", "-f", "raw", image);
      const uri = `nbds+unix://alice@/?socket=${server.socket}&tls-psk-file=${keys}`;
      await using _client = await readAll(uri);
    },
  );

  it("reads with a pre-shared key from nbdkit", async () => {
    await using server = await startNbdkit(folder, "--tls=require", `--tls-psk=${keys}`, "file", image);
    await using _client = await readAll(`nbds+unix://alice@/?socket=${server.socket}&tls-psk-file=${keys}`);
  });

  it("rejects a server that doesn't know the pre-shared key", async () => {
    const wrong = join(folder.path, "wrong.psk");
    await writeFile(wrong, `alice:${"00".repeat(32)}\n`);
    await using server = await startNbdkit(folder, "--tls=require", `--tls-psk=${keys}`, "file", image);
    await expect(
      NbdClient.connect(`nbds+unix://alice@/?socket=${server.socket}&tls-psk-file=${wrong}`),
    ).rejects.toMatchObject({ code: "NBD_TLS_FAILED" });
  });

  it("does not accept a certificate instead of a pre-shared key", async () => {
    await using server = await startNbdkit(folder, ...nbdkitTls(), "file", image);
    await expect(
      NbdClient.connect(`nbds+unix://alice@/?socket=${server.socket}&tls-psk-file=${keys}`),
    ).rejects.toMatchObject({ code: "NBD_TLS_FAILED" });
  });

  it("does not accept a certificate instead of a pre-shared key, even if the environment makes Node accept any", async () => {
    await using server = await startNbdkit(folder, ...nbdkitTls(), "file", image);
    vi.stubEnv("NODE_TLS_REJECT_UNAUTHORIZED", "0");
    try {
      await expect(
        NbdClient.connect(`nbds+unix://alice@/?socket=${server.socket}&tls-psk-file=${keys}`),
      ).rejects.toMatchObject({ code: "NBD_TLS_FAILED", hangUp: false });
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it("keeps the URI's demands if an option has no value", async () => {
    await using server = await qemuWithCertificates();
    const uri = uriOf(server.socket, "", `tls-certificates=${ours.path}&tls-hostname=elsewhere.test`, "nbds");
    const tls = { certificates: undefined, hostname: undefined } as object;
    await expect(NbdClient.connect(uri, { tls })).rejects.toThrow(/elsewhere\.test/);
  });

  it("never falls back to plain text", async () => {
    await using server = await startNbdkit(folder, "--tls=off", "file", image);
    const uri = uriOf(server.socket, "", `tls-certificates=${ours.path}`, "nbds");
    await expect(NbdClient.connect(uri)).rejects.toMatchObject({ code: "NBD_TLS_REFUSED" });
  });

  it("reports that the server requires TLS", async () => {
    await using server = await startNbdkit(folder, ...nbdkitTls(), "file", image);
    await expect(NbdClient.connect(uriOf(server.socket))).rejects.toMatchObject({
      code: "NBD_TLS_REQUIRED",
      message: expect.stringContaining("nbds"),
    });
  });

  it("checks the certificate files before it connects", async () => {
    const failure = { name: "TlsError", code: "NBD_TLS_CONFIG" };
    const tls = { ca: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" };
    await expect(NbdClient.connect("nbd://host.invalid/", { tls })).rejects.toMatchObject(failure);
    const pair = { cert: await readFile(join(ours.path, "client-cert.pem")), key: "no key" };
    await expect(NbdClient.connect("nbd://host.invalid/", { tls: pair })).rejects.toMatchObject(failure);
    const half = { cert: await readFile(join(ours.path, "client-cert.pem")) };
    await expect(NbdClient.connect("nbd://host.invalid/", { tls: half })).rejects.toMatchObject(failure);
  });

  it.each([
    ["nbds://host.invalid/", { hostname: "" }, /hostname is empty/],
    ["nbds://host.invalid/", { certificates: "" }, /certificates is empty/],
    ["nbds://host.invalid/", { ca: "" }, /ca is empty/],
    ["nbds://host.invalid/?tls-type=psk", {}, /takes a tls-psk-file/],
    ["nbds://host.invalid/?tls-type=x509", { pskFile: "keys" }, /excludes a pre-shared key/],
    ["nbds://host.invalid/?tls-psk-file=keys", { key: "key" }, /exclude each other/],
    ["nbds://host.invalid/?tls-certificates=pki", { pskFile: "keys" }, /exclude each other/],
  ])("refuses to guess what %s with %j means", async (uri, tls, message) => {
    await expect(NbdClient.connect(uri, { tls })).rejects.toMatchObject({
      code: "NBD_TLS_CONFIG",
      message: expect.stringMatching(message),
    });
  });

  it("names the file that is missing", async () => {
    const uri = `nbds://localhost/?tls-certificates=${folder.path}/nowhere`;
    await expect(NbdClient.connect(uri)).rejects.toThrow(TlsError);
    await expect(NbdClient.connect(uri)).rejects.toThrow(/nowhere\/ca-cert\.pem/);
    const psk = `nbds://bob@localhost/?tls-psk-file=${keys}`;
    await expect(NbdClient.connect(psk)).rejects.toThrow(/no line bob:/);
  });
});
