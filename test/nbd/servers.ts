/** Real servers for the client's tests, each in a folder of its own that is removed after the test. */

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { endianness, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { findTool } from "../support/tools.js";

/** A folder that is removed when disposed. */
export interface Folder extends AsyncDisposable {
  readonly path: string;
}

export async function makeFolder(): Promise<Folder> {
  const path = await mkdtemp(join(tmpdir(), "nbd-client-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

export interface RunningServer extends AsyncDisposable {
  /** Kills it at once, like a crash. */
  kill(): Promise<void>;
}

/**
 * Starts a program and waits until `listens` returns true; if it ends before, fails with its error output.
 */
export async function startServer(
  tool: string,
  args: readonly string[],
  listens: () => Promise<boolean>,
): Promise<RunningServer> {
  const server = execa(findTool(tool) ?? tool, args, { reject: false, stdin: "ignore" });
  const end = async (signal: "SIGTERM" | "SIGKILL") => {
    server.kill(signal);
    await server;
  };
  const deadline = Date.now() + 120_000;
  while (!(await listens())) {
    if (server.exitCode !== null || Date.now() > deadline) {
      await end("SIGKILL");
      throw new Error(`${tool} does not listen: ${(await server).stderr}`);
    }
    await sleep(10);
  }
  return { kill: () => end("SIGKILL"), [Symbol.asyncDispose]: () => end("SIGTERM") };
}

/** Whether somebody listens on a Unix socket or a port of this machine. */
export function listensOn(where: string | number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = typeof where === "number" ? connect(where, "127.0.0.1") : connect(where);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

export interface ServerOnSocket extends RunningServer {
  readonly socket: string;
  readonly uri: string;
}

/** Starts nbdkit on a Unix socket: `args` are its filters and options, the plugin and its parameters. */
export async function startNbdkit(folder: Folder, ...args: readonly string[]): Promise<ServerOnSocket> {
  const socket = join(folder.path, `nbdkit-${Date.now()}-${Math.random()}.sock`);
  const server = await startServer("nbdkit", ["-f", "-U", socket, ...args], () => listensOn(socket));
  return { ...server, socket, uri: uriOf(socket) };
}

/** Starts qemu-nbd on a Unix socket, for any number of clients. */
export async function startQemu(folder: Folder, ...args: readonly string[]): Promise<ServerOnSocket> {
  const socket = join(folder.path, `qemu-${Date.now()}-${Math.random()}.sock`);
  const server = await startServer("qemu-nbd", ["-k", socket, "-t", "--shared=0", ...args], () =>
    listensOn(socket),
  );
  return { ...server, socket, uri: uriOf(socket) };
}

export function uriOf(socket: string, exportName = "", parameters = "", scheme = "nbd"): string {
  const more = parameters === "" ? "" : `&${parameters}`;
  return `${scheme}+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(socket)}${more}`;
}

/** Bytes that depend on their position: every 8 contain their own offset. */
export function pattern(offset: number, length: number): Buffer {
  const first = Math.floor(offset / 8);
  const words = Math.ceil((offset + length) / 8) - first;
  const halves = new Uint32Array(2 * words);
  for (let i = 0; i < words; i += 1) {
    const value = (first + i) * 8;
    halves[2 * i] = Math.floor(value / 2 ** 32);
    halves[2 * i + 1] = value;
  }
  const bytes = Buffer.from(halves.buffer);
  if (endianness() === "LE") bytes.swap32();
  return bytes.subarray(offset - first * 8).subarray(0, length);
}

export interface Authority {
  /** The folder with the CA's certificate, and a server's and a client's certificate signed by it. */
  readonly path: string;
}

/**
 * A certificate authority with a server's certificate for `hosts` and a client's certificate.
 * @param kind of the keys; libvirt takes certificates for the encipherment of keys only, which are of RSA
 */
export async function makeAuthority(
  folder: Pick<Folder, "path">,
  name: string,
  hosts: readonly string[] = ["localhost"],
  kind: "ecc" | "rsa" = "ecc",
): Promise<Authority> {
  const path = join(folder.path, name);
  const { mkdir } = await import("node:fs/promises");
  await mkdir(path);
  const file = (suffix: string) => join(path, suffix);
  const certtool = (...args: string[]) => execa(findTool("certtool") ?? "certtool", args);
  const key = (to: string) => certtool("--generate-privkey", `--${kind}`, "--outfile", file(to));
  const template = async (to: string, ...lines: string[]) => {
    await writeFile(file(to), [`cn = ${name}`, "expiration_days = 2", ...lines, ""].join("\n"));
    return file(to);
  };
  await Promise.all([key("ca-key.pem"), key("server-key.pem"), key("client-key.pem")]);
  const ca = await template("ca.info", "ca", "cert_signing_key", "crl_signing_key");
  await certtool(
    "--generate-self-signed",
    ...["--load-privkey", file("ca-key.pem"), "--template", ca, "--outfile", file("ca-cert.pem")],
  );
  const sign = async (role: "server" | "client", ...lines: string[]) => {
    const uses = [`tls_www_${role}`, "signing_key", ...(kind === "rsa" ? ["encryption_key"] : [])];
    const info = await template(`${role}.info`, ...uses, ...lines);
    await certtool(
      "--generate-certificate",
      ...["--load-ca-certificate", file("ca-cert.pem"), "--load-ca-privkey", file("ca-key.pem")],
      ...["--load-privkey", file(`${role}-key.pem`), "--template", info],
      ...["--outfile", file(`${role}-cert.pem`)],
    );
  };
  await Promise.all([sign("server", ...hosts.map((host) => `dns_name = ${host}`)), sign("client")]);
  return { path };
}
