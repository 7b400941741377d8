/** Which of the sockets of a host is connected to: that of virtqemud, or of libvirtd where that isn't there. */
import { mkdir, mkdtemp, rename, rm, symlink } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { parseConnectionUri } from "../../../../src/backup/libvirt/hypervisor.js";
import { openConnection } from "../../../../src/backup/libvirt/rpc/open.js";
import { CONNECT_GET_CAPABILITIES } from "../../../../src/backup/libvirt/rpc/procedures.js";
import { XdrWriter } from "../../../../src/backup/libvirt/rpc/xdr.js";
import { ScriptedLibvirt } from "../../../support/scripted-libvirt.js";

const CAPABILITIES = 7;
const [MODULAR, MONOLITHIC] = ["virtqemud-sock", "libvirt-sock"];

let runtimeFolder: string;
beforeEach(async () => {
  runtimeFolder = await mkdtemp(join(tmpdir(), "nbdpull-runtime-"));
  await mkdir(join(runtimeFolder, "libvirt"));
});
afterEach(() => rm(runtimeFolder, { recursive: true }));

const at = (name = ""): string => join(runtimeFolder, "libvirt", name);

/** A daemon that says its name, at a socket of another one. */
async function daemon(name: string, socket: string | undefined): Promise<ScriptedLibvirt> {
  const script = { [CAPABILITIES]: () => new XdrWriter().string(name) };
  const started = await ScriptedLibvirt.start(script);
  await symlink(started.socket, at(socket));
  return started;
}

/** A socket on which nobody listens any longer, as a daemon that was killed leaves it. */
async function leaveDead(socket: string | undefined): Promise<void> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(at("dying"), resolve));
  await rename(at("dying"), at(socket));
  await new Promise((resolve) => server.close(resolve));
}

async function answering(): Promise<string> {
  const address = parseConnectionUri("qemu:///session", { runtimeFolder }).daemon;
  const { signal } = new AbortController();
  const connection = await openConnection(address, { timeoutMs: 10_000, signal });
  try {
    return await connection.call(CONNECT_GET_CAPABILITIES, undefined, { timeoutMs: 10_000 });
  } finally {
    connection.close();
  }
}

it("connects to virtqemud where that is alone", async () => {
  await using _ = await daemon("modular", MODULAR);
  expect(await answering()).toBe("modular");
});

it("prefers virtqemud to libvirtd", async () => {
  await using _ = await daemon("modular", MODULAR);
  await using __ = await daemon("monolithic", MONOLITHIC);
  expect(await answering()).toBe("modular");
});

it("connects to libvirtd where virtqemud has left its socket, or never was", async () => {
  await using _ = await daemon("monolithic", MONOLITHIC);
  expect(await answering()).toBe("monolithic");
  await leaveDead(MODULAR);
  expect(await answering()).toBe("monolithic");
});

it("says of each socket why nobody answers there", async () => {
  await leaveDead(MODULAR);
  await expect(answering()).rejects.toMatchObject({
    name: "LostError",
    message: expect.stringMatching(/ECONNREFUSED.*virtqemud-sock; connect ENOENT .*libvirt-sock/),
  });
});
