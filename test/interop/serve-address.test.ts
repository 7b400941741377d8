/** Where `nbdpull serve` listens: sockets, addresses, TLS. */

import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { NbdClient } from "../../src/nbd/index.js";
import { listensOn, makeAuthority } from "../nbd/servers.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";
import { startServing } from "../support/serving.js";
import { describeWith } from "../support/tools.js";

const CLUSTER = 64 * 1024;
const SIZE = 40 * CLUSTER + 3 * 512;

let chain: MemoryChain;
let out: string;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(30 * CLUSTER, 0x11));
  await chain.take();
  out = await mkdtemp(join(tmpdir(), "nbdpull-serve-"));
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
  await rm(out, { recursive: true });
});
const at = (name: string): string => join(out, name);
const repo = (): string => chain.repository.path;

describe("the socket of nbdpull serve", () => {
  const socket = (): string => at("nbd.sock");

  it.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)(
    "is accessible to its user only, and is removed after %s, with exit code 0",
    async (signal) => {
      const server = await startServing(repo(), "--socket", socket());
      expect((await stat(socket())).mode & 0o777).toBe(0o600);
      await using client = await NbdClient.connect(server.uris[0] ?? "");
      // Signal it in the middle of its work.
      const reads = Array.from({ length: 30 }, (_, i) => client.read(i * CLUSTER, Buffer.alloc(CLUSTER)));
      const outcomes = Promise.allSettled(reads);
      expect((await server.stop(signal)).code).toBe(0);
      await outcomes;
      await expect(stat(socket())).rejects.toThrow(/ENOENT/);
    },
  );

  it("is left by a killed server, and replaced by the next one", async () => {
    const killed = await startServing(repo(), "--socket", socket());
    expect((await killed.stop("SIGKILL")).signal).toBe("SIGKILL");
    expect((await stat(socket())).isSocket()).toBe(true);
    await using server = await startServing(repo(), "--socket", socket());
    await using client = await NbdClient.connect(server.uris[0] ?? "");
    expect(client.export.size).toBe(SIZE);
  });

  it("is not taken over from a server that listens", async () => {
    await using server = await startServing(repo(), "--socket", socket());
    const second = await nbdpull("serve", repo(), "--socket", socket(), "--json");
    expect([second.code, second.json()]).toMatchObject([4, { error: { code: "E_ADDRESS_IN_USE" } }]);
    expect(second.stderr).toContain(`another program listens on ${socket()}`);
    await using client = await NbdClient.connect(server.uris[0] ?? "");
    expect(client.export.size).toBe(SIZE);
  });

  it("never replaces anything but a socket, needs its folder, and has a limited length", async () => {
    await writeFile(socket(), "mine");
    await mkdir(at("folder"));
    const refused = [
      [socket(), "E_SOCKET"],
      [at("folder"), "E_SOCKET"],
      [at("nowhere/nbd.sock"), "E_NO_FOLDER"],
      [at("x".repeat(120)), "E_SOCKET"],
    ];
    for (const [path = "", code] of refused) {
      const ran = await nbdpull("serve", repo(), "--socket", path, "--json");
      expect([ran.code, ran.json()]).toMatchObject([2, { error: { code } }]);
    }
    expect(await readFile(socket(), "utf8")).toBe("mine");
  });

  it("is removed as well when --once has seen the last client leave", async () => {
    const server = await startServing(repo(), "--socket", socket(), "--once");
    // A connection that only probes the socket does not count as a client.
    expect(await listensOn(socket())).toBe(true);
    {
      await using first = await NbdClient.connect(server.uris[0] ?? "", { connections: 2 });
      await using second = await NbdClient.connect(server.uris[0] ?? "");
      await second.close();
      await first.read(0, Buffer.alloc(512));
    }
    expect((await server.ended).code).toBe(0);
    await expect(stat(socket())).rejects.toThrow(/ENOENT/);
  });
});

describe("the address of nbdpull serve", () => {
  it("may be a port, a host with a port, or an IPv6 address", async () => {
    for (const address of ["0", "127.0.0.1:0", "localhost:0", "[::1]:0"]) {
      await using server = await startServing(repo(), "--listen", address);
      await using client = await NbdClient.connect(server.uris[0] ?? "");
      expect(client.export.size).toBe(SIZE);
    }
  });

  it.each([
    ["nonsense", ["--listen", "a:b:c"], 2, "E_LISTEN"],
    ["a port that is too large", ["--listen", "127.0.0.1:65536"], 2, "E_LISTEN"],
    ["an unknown host", ["--listen", "no.such.host.invalid:0"], 2, "E_LISTEN"],
    ["an address of another machine", ["--listen", "192.0.2.1:0", "--allow-remote"], 2, "E_LISTEN"],
    ["every interface without --allow-remote", ["--listen", "0.0.0.0:0"], 2, "E_REMOTE"],
    ["every interface by IPv6 without --allow-remote", ["--listen", "[::]:0"], 2, "E_REMOTE"],
    ["a socket as well", ["--listen", "0", "--socket", "x.sock"], 2, "E_USAGE"],
    ["a size of no cache", ["--listen", "0", "--cache-size", "1G"], 2, "E_USAGE"],
    ["a cache without room", ["--listen", "0", "--cache", "/tmp/no", "--cache-size", "1K"], 2, "E_CACHE"],
    ["a cache where nobody can write", ["--listen", "0", "--cache", "/proc/cache"], 2, "E_CACHE"],
    ["a key without certificate", ["--listen", "0", "--tls-key", "x.pem"], 2, "E_USAGE"],
    [
      "a missing certificate",
      ["--listen", "0", "--tls-key", "x.pem", "--tls-cert", "x.pem"],
      2,
      "E_TLS_FILE",
    ],
    ["no such disk", ["--listen", "0", "--disk", "vdz"], 4, "E_NO_DISK"],
    ["no such point", ["--listen", "0", "--at", "1999-01-01"], 4, "E_NO_POINT"],
  ])("is refused: %s", async (_, args, code, error) => {
    const ran = await nbdpull("serve", repo(), ...args, "--json");
    expect([ran.code, ran.json()]).toMatchObject([code, { error: { code: error } }]);
  });

  it("is refused if another program uses it", async () => {
    const other = createServer();
    const port = await freePort();
    await new Promise<void>((resolve) => other.listen(port, "127.0.0.1", resolve));
    const ran = await nbdpull("serve", repo(), "--listen", String(port), "--json");
    await new Promise((resolve) => other.close(resolve));
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_ADDRESS_IN_USE" } }]);
  });

  it("may be open to all with --allow-remote, with a warning", async () => {
    const server = await startServing(repo(), "--listen", "0.0.0.0:0", "--allow-remote");
    await using client = await NbdClient.connect(server.uris[0] ?? "");
    expect(client.export.size).toBe(SIZE);
    expect((await server.stop()).stderr).toMatch(
      /anyone who reaches 0\.0\.0\.0 can read the backup, unencrypted/,
    );
  });

  it("brings a warning that a loopback address is open to every user of the machine", async () => {
    const server = await startServing(repo(), "--listen", "0");
    expect((await server.stop()).stderr).toMatch(/every user of this machine can connect to 127\.0\.0\.1/);
  });

  describeWith(["certtool", "nbdinfo"], "with TLS", () => {
    it("may be open to other machines, and admits only clients with a certificate", async () => {
      const { path } = await makeAuthority({ path: out }, "ours");
      const pem = (name: string): string => join(path, `${name}.pem`);
      const tls = ["--tls-cert", pem("server-cert"), "--tls-key", pem("server-key")];
      const server = await startServing(repo(), "--listen", "0.0.0.0:0", ...tls, "--tls-ca", pem("ca-cert"));
      const [uri = ""] = server.uris;
      expect(uri).toMatch(/^nbds:\/\/localhost:\d+\/vda$/);
      const { stdout } = await execa("nbdinfo", ["--size", `${uri}?tls-certificates=${path}`]);
      expect(Number(stdout)).toBe(SIZE);
      await expect(NbdClient.connect(uri.replace("nbds", "nbd"))).rejects.toMatchObject({
        code: "NBD_TLS_REQUIRED",
      });
      const ca = await readFile(pem("ca-cert"));
      await expect(NbdClient.connect(uri, { tls: { ca } })).rejects.toMatchObject({
        name: expect.stringMatching(/TlsError|ConnectionError/),
      });
      expect((await server.stop()).code).toBe(0);
    });

    it("is refused if certificate and key don't match", async () => {
      const { path } = await makeAuthority({ path: out }, "ours");
      const tls = ["--tls-cert", join(path, "server-cert.pem"), "--tls-key", join(path, "client-key.pem")];
      const ran = await nbdpull("serve", repo(), "--listen", "0", ...tls, "--json");
      expect([ran.code, ran.json()]).toMatchObject([2, { error: { code: "E_TLS_FILE" } }]);
    });
  });
});
