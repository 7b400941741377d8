/** TLS as a user of the command sees it: each command against real servers, and each failure of TLS. */

import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import {
  type Authority,
  type Folder,
  listensOn,
  makeAuthority,
  makeFolder,
  pattern,
  type RunningServer,
  type ServerOnSocket,
  startNbdkit,
  startQemu,
  startServer,
  uriOf,
} from "../nbd/servers.js";
import { freshPaths } from "../support/fresh.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";
import { qemuImg, qemuIo } from "../support/qemu-nbd.js";
import { startAll } from "../support/start-all.js";
import { describeWith, findTool } from "../support/tools.js";

const MiB = 1024 * 1024;
/** A name that does not resolve, but is in the server's certificate. */
const UNREACHABLE = "nbd.example.test";
const TOOLS = ["qemu-nbd", "qemu-img", "qemu-storage-daemon", "nbdkit", "certtool", "psktool"];

describeWith(TOOLS, "nbdpull over TLS", () => {
  let folder: Folder;
  let ours: Authority;
  let strangers: Authority;
  let keys: string;
  /** Raw disks, exported under these names. */
  const DISKS = { vda: pattern(0, 3 * MiB), vdb: pattern(4096, MiB) };
  /** Over TCP, with certificates on both sides. */
  let x509: RunningServer & { readonly port: number };
  /** Over TCP, with pre-shared keys. */
  let psk: RunningServer & { readonly port: number };
  /** Over a Unix socket, with certificates: an image with a dirty bitmap. */
  let onSocket: ServerOnSocket;

  const at = (name: string): string => join(folder.path, name);
  const fresh = freshPaths();
  const pem = (authority: Authority, name: string): string => join(authority.path, name);
  const flags = (authority: Authority, client = authority): string[] => [
    ...["--tls-ca", pem(authority, "ca-cert.pem")],
    ...["--tls-cert", pem(client, "client-cert.pem"), "--tls-key", pem(client, "client-key.pem")],
  ];

  /** A daemon that serves both disks over TCP, as QEMU does during a backup job. */
  async function startDaemon(credentials: string): Promise<RunningServer & { readonly port: number }> {
    const port = await freePort();
    const args = ["--object", `${credentials},id=tls0,endpoint=server`];
    args.push("--nbd-server", `addr.type=inet,addr.host=127.0.0.1,addr.port=${port},tls-creds=tls0`);
    for (const name of Object.keys(DISKS)) {
      args.push("--blockdev", `driver=file,node-name=${name},filename=${at(`${name}.raw`)},read-only=on`);
      args.push("--export", `type=nbd,id=${name},node-name=${name},name=${name}`);
    }
    return { ...(await startServer("qemu-storage-daemon", args, () => listensOn(port))), port };
  }

  beforeAll(async () => {
    folder = await makeFolder();
    [ours, strangers] = await Promise.all([
      makeAuthority(folder, "ours", ["localhost", UNREACHABLE]),
      makeAuthority(folder, "strangers"),
    ]);
    await mkdir(at("psk"));
    keys = at("psk/keys.psk");
    await execa(findTool("psktool") ?? "psktool", ["-u", "alice", "-p", keys]);
    for (const [name, bytes] of Object.entries(DISKS)) await writeFile(at(`${name}.raw`), bytes);
    await qemuImg("create", "-q", "-f", "qcow2", at("dirty.qcow2"), "8M");
    await qemuImg("bitmap", "--add", at("dirty.qcow2"), "b0");
    await qemuIo(at("dirty.qcow2"), "qcow2", "write -P 7 1M 64k");
    [x509, psk, onSocket] = await startAll(
      startDaemon(`tls-creds-x509,dir=${ours.path},verify-peer=on`),
      startDaemon(`tls-creds-psk,dir=${at("psk")}`),
      startQemu(
        folder,
        `--object=tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir=${ours.path}`,
        "--tls-creds=tls0",
        ...["-r", "-f", "qcow2", "-B", "b0", at("dirty.qcow2")],
      ),
    );
  });
  afterAll(async () => {
    for (const server of [x509, psk, onSocket]) await server?.[Symbol.asyncDispose]();
    await folder[Symbol.asyncDispose]();
  });

  function expectDone(ran: Ran): void {
    expect(ran.stderr.replace(/^warning: .*\n?/gm, "")).toBe("");
    expect(ran.code).toBe(0);
  }

  async function expectDisk(path: string, name: keyof typeof DISKS): Promise<void> {
    expect((await readFile(path)).equals(DISKS[name]), path).toBe(true);
  }

  /** A job's XML whose server requires TLS. */
  async function jobXml(port: number, host = "localhost"): Promise<string> {
    const path = at(`job-${Math.random()}.xml`);
    const disks = Object.keys(DISKS).map((name) => `<disk name='${name}' backup='yes' type='file'/>`);
    await writeFile(
      path,
      `<domainbackup mode='pull'><server transport='tcp' name='${host}' port='${port}' tls='yes'/><disks>${disks.join("")}</disks></domainbackup>`,
    );
    return path;
  }

  async function attach(
    xml: string,
    ...more: readonly string[]
  ): Promise<Ran & { readonly repository: string }> {
    const repository = at(`repository-${Math.random()}`);
    const args = ["attach", "--xml", xml, "--domain", "guest", "--to", repository, "--format", "raw"];
    return { ...(await nbdpull(...args, ...more)), repository };
  }

  async function expectPoint(ran: Ran & { readonly repository: string }): Promise<void> {
    expectDone(ran);
    expect(ran.stderr).toContain("no --checkpoint");
    const files = await readdir(ran.repository, { recursive: true });
    for (const name of ["vda", "vdb"] as const) {
      const file = files.find((path) => path.endsWith(`${name}.raw`)) ?? "";
      await expectDisk(join(ran.repository, file), name);
    }
  }

  async function expectNoPoint(repository: string): Promise<void> {
    const files = existsSync(repository) ? await readdir(repository, { recursive: true }) : [];
    expect(files.filter((path) => /\.raw$|manifest/.test(path))).toEqual([]);
  }

  describe("with certificates on both sides", () => {
    it("info shows one export, and all exports", async () => {
      const base = `nbds://localhost:${x509.port}`;
      const one = await nbdpull("info", `${base}/vda`, ...flags(ours), "--json");
      expectDone(one);
      expect(one.json()).toMatchObject({
        TLS: true,
        exports: [{ "export-name": "vda", uri: `${base}/vda`, "export-size": 3 * MiB }],
      });
      const all = await nbdpull("info", `${base}/?tls-certificates=${ours.path}`, "--list", "--json");
      expectDone(all);
      expect(all.json()).toMatchObject({
        TLS: true,
        exports: [{ "export-name": "vda" }, { "export-name": "vdb" }],
      });
    });

    it("map shows a bitmap, over a unix socket", async () => {
      const uri = uriOf(onSocket.socket, "", `tls-certificates=${ours.path}`, "nbds");
      const ran = await nbdpull("map", uri, "--bitmap", "b0", "--json");
      expectDone(ran);
      expect(ran.json()).toMatchObject([
        { offset: 0, length: MiB, type: 0 },
        { offset: MiB, length: 65_536, type: 1, description: "dirty" },
        { offset: MiB + 65_536, length: 7 * MiB - 65_536, type: 0 },
      ]);
    });

    it("pull copies an export over TCP, and changes over a unix socket", async () => {
      const uri = `nbds://localhost:${x509.port}/vda`;
      expectDone(
        await nbdpull("pull", uri, fresh("pulled.raw"), ...flags(ours), "--connections", "4", "--quiet"),
      );
      await expectDisk(fresh("pulled.raw"), "vda");

      const changes = uriOf(onSocket.socket, "", "", "nbds");
      const args = ["pull", changes, fresh("changes.qcow2"), "--bitmap", "b0", ...flags(ours), "--json"];
      const ran = await nbdpull(...args);
      expectDone(ran);
      expect(ran.json()).toMatchObject({ mode: "incremental", dirtyBytes: 65_536, connections: 1 });
      await qemuIo(fresh("changes.qcow2"), "qcow2", "read -P 7 1M 64k");
    });

    it("attach backs up all disks of a job with tls='yes'", async () => {
      await expectPoint(await attach(await jobXml(x509.port), ...flags(ours)));
    });

    it("reaches a server under another host than the one in its certificate", async () => {
      const uri = `nbds://${UNREACHABLE}:${x509.port}/vdb`;
      const lost = await nbdpull("info", uri, ...flags(ours));
      expect(lost.code).toBe(1);
      expect(lost.stderr).toContain(UNREACHABLE);

      const override = ["--host-override", "127.0.0.1"];
      expectDone(await nbdpull("info", uri, ...flags(ours), ...override));
      expectDone(await nbdpull("pull", uri, fresh("override.raw"), ...flags(ours), ...override, "--quiet"));
      await expectDisk(fresh("override.raw"), "vdb");
      await expectPoint(await attach(await jobXml(x509.port, UNREACHABLE), ...flags(ours), ...override));

      const other = `nbds://other.example.test:${x509.port}/vdb`;
      const refused = await nbdpull("info", other, ...flags(ours), ...override);
      expect(refused.code).toBe(1);
      expect(refused.stderr).toMatch(/not for other\.example\.test/);
    });
  });

  describe("with a pre-shared key", () => {
    it("works in every command", async () => {
      const uri = `nbds://alice@localhost:${psk.port}/vda?tls-psk-file=${keys}`;
      const info = await nbdpull("info", uri, "--json");
      expectDone(info);
      expect(info.json()).toMatchObject({ TLS: true });
      expectDone(await nbdpull("map", uri));
      expectDone(
        await nbdpull(
          "pull",
          `nbds://alice@localhost:${psk.port}/vda`,
          fresh("psk.raw"),
          "--tls-psk-file",
          keys,
        ),
      );
      await expectDisk(fresh("psk.raw"), "vda");
    });

    it("works over a unix socket", async () => {
      await using server = await startNbdkit(
        folder,
        ...["--tls=require", `--tls-psk=${keys}`, "-r", "file", at("vda.raw")],
      );
      const uri = `nbds+unix://alice@/?socket=${server.socket}`;
      expectDone(await nbdpull("pull", uri, fresh("psk-unix.raw"), "--tls-psk-file", keys));
      await expectDisk(fresh("psk-unix.raw"), "vda");
    });

    it("uses the only user of the key file for a job, which names none", async () => {
      await expectPoint(await attach(await jobXml(psk.port), "--tls-psk-file", keys));

      const two = fresh("two.psk");
      await writeFile(two, `${await readFile(keys, "utf8")}bob:00ff\n`);
      const ran = await attach(await jobXml(psk.port), "--tls-psk-file", two);
      expect(ran.code).toBe(2);
      expect(ran.stderr).toMatch(/keys of 2 users: name one/);
      await expectNoPoint(ran.repository);
    });

    it("reports that the server has another key", async () => {
      await writeFile(fresh("wrong.psk"), `alice:${"00".repeat(32)}\n`);
      const ran = await nbdpull(
        "info",
        `nbds://localhost:${psk.port}/vda?tls-psk-file=${fresh("wrong.psk")}`,
      );
      expect(ran.code).toBe(1);
      expect(ran.stderr).toMatch(/same key for the user alice/);
    });

    it("reports that the server has certificates instead", async () => {
      const ran = await nbdpull("info", `nbds://localhost:${x509.port}/vda?tls-psk-file=${keys}`);
      expect(ran.code).toBe(1);
      expect(ran.stderr).toMatch(/TLS handshake.*(certificate instead|same key for the user alice)/s);
    });
  });

  describe("fails, leaves nothing behind and says what to do", () => {
    it("when an unknown CA signed the server's certificate", async () => {
      const uri = `nbds://localhost:${x509.port}/vda`;
      const advice = /no CA that is trusted here signed the server's certificate: give/;
      const pulled = await nbdpull("pull", uri, fresh("never.raw"), ...flags(strangers, ours), "--json");
      expect(pulled.code).toBe(1);
      expect(pulled.stderr).toMatch(advice);
      expect(pulled.json()).toMatchObject({ error: { code: "NBD_TLS_FAILED" } });
      const attached = await attach(await jobXml(x509.port), ...flags(strangers, ours));
      expect(attached.code).toBe(1);
      expect(attached.stderr).toMatch(advice);
      await expectNoPoint(attached.repository);
      expect((await nbdpull("info", uri)).stderr).toMatch(advice);
      expect((await readdir(folder.path)).filter((name) => name.includes("never"))).toEqual([]);
    });

    it("when the certificate is for another host", async () => {
      const advice = /certificate is not for .*: name the host as the certificate does.*tls-hostname/;
      const byAddress = await nbdpull("info", `nbds://127.0.0.1:${x509.port}/vda`, ...flags(ours));
      expect(byAddress.code).toBe(1);
      expect(byAddress.stderr).toMatch(advice);
      const attached = await attach(await jobXml(x509.port, "127.0.0.1"), ...flags(ours));
      expect(attached.code).toBe(1);
      expect(attached.stderr).toMatch(advice);
      await expectNoPoint(attached.repository);
      const named = `nbds://127.0.0.1:${x509.port}/vda?tls-hostname=localhost`;
      expectDone(await nbdpull("info", named, ...flags(ours)));
    });

    it("when the server wants a client certificate, or a different one", async () => {
      const uri = `nbds://localhost:${x509.port}/vda`;
      const none = await nbdpull("info", uri, "--tls-ca", pem(ours, "ca-cert.pem"), "--json");
      expect(none.code).toBe(1);
      expect(none.json()).toMatchObject({ error: { code: "NBD_TLS_FAILED" } });
      expect(none.stderr).toMatch(/may want a client certificate: give one/);
      const other = await nbdpull("info", uri, ...flags(ours, strangers));
      expect(other.code).toBe(1);
      expect(other.stderr).toMatch(/may refuse the client's certificate: is it signed by the CA/);
    });

    it("when the server offers no TLS, and never continues without", async () => {
      const port = await freePort();
      await using _server = await startServer(
        "nbdkit",
        ["-f", "-p", `${port}`, "-i", "127.0.0.1", "--tls=off", "-r", "file", at("vda.raw")],
        () => listensOn(port),
      );
      const refusal = /TLS is required, but not available/;
      const pulled = await nbdpull("pull", `nbds://localhost:${port}/`, fresh("plain.raw"), ...flags(ours));
      expect(pulled.code).toBe(1);
      expect(pulled.stderr).toMatch(refusal);
      expect(existsSync(fresh("plain.raw"))).toBe(false);
      // A TLS flag makes TLS mandatory, whatever the URI's scheme.
      const flagged = await nbdpull("info", `nbd://localhost:${port}/`, ...flags(ours), "--json");
      expect(flagged.json()).toMatchObject({ error: { code: "NBD_TLS_REFUSED" } });
      const attached = await attach(await jobXml(port), ...flags(ours));
      expect(attached.code).toBe(1);
      expect(attached.stderr).toMatch(refusal);
      await expectNoPoint(attached.repository);
      expectDone(await nbdpull("info", `nbd://localhost:${port}/`));
    });

    it("when the server requires TLS", async () => {
      const ran = await nbdpull("info", `nbd://localhost:${x509.port}/vda`, "--json");
      expect(ran.code).toBe(1);
      expect(ran.json()).toMatchObject({ error: { code: "NBD_TLS_REQUIRED" } });
      expect(ran.stderr).toMatch(/use a nbds:\/\/ URI/);
    });

    it("when files are missing or contradict each other, before it connects", async () => {
      const uri = "nbds://nobody.invalid/";
      const usage = async (pattern: RegExp, ...args: readonly string[]) => {
        const ran = await nbdpull("info", ...args);
        expect(ran.stderr).toMatch(pattern);
        expect(ran.code).toBe(2);
      };
      await usage(/--tls-ca: .*nowhere/, uri, "--tls-ca", at("nowhere.pem"));
      await usage(/only make sense together/, uri, "--tls-cert", pem(ours, "client-cert.pem"));
      await usage(/ca-cert\.pem/, `${uri}?tls-certificates=${at("nowhere")}`);
    });
  });

  it("accepts any certificate only with --insecure", async () => {
    const client = flags(ours).slice(2);
    const uri = `nbds://127.0.0.1:${x509.port}/vdb`;
    expect((await nbdpull("info", uri, ...client)).code).toBe(1);
    expectDone(await nbdpull("pull", uri, fresh("insecure.raw"), ...client, "--insecure", "--quiet"));
    await expectDisk(fresh("insecure.raw"), "vdb");
    expectDone(await nbdpull("info", `${uri}?tls-verify-peer=0`, ...client, "--insecure"));
    // TLS itself is still mandatory.
    await using plain = await startNbdkit(folder, "--tls=off", "-r", "file", at("vda.raw"));
    const refused = await nbdpull("info", uriOf(plain.socket, "", "", "nbds"), "--insecure");
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/TLS is required, but not available/);
  });
});
