/**
 * The attack: a connection URI or who answers at a socket has root run commands, believe a stranger, or fill
 * up.
 */
import { access, chmod, chown, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Duplex } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { RpcConnection } from "../../src/backup/libvirt/rpc/connection.js";
import { encodePacket, PacketSplitter, PROGRAM } from "../../src/backup/libvirt/rpc/packets.js";
import { XdrWriter } from "../../src/backup/libvirt/rpc/xdr.js";
import { ATTACKER, NO_ATTACKER } from "../support/attacker.js";
import { ScriptedLibvirt } from "../support/scripted-libvirt.js";
import { describeUnless } from "../support/tools.js";

let folder: string;
let owned: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-hostile-"));
  owned = join(folder, "owned");
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function program(name: string, script: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, `#!/bin/sh\n${script}\n`);
  await chmod(path, 0o755);
  return encodeURIComponent(path);
}

async function refusalOf(uri: string): Promise<unknown> {
  await using libvirt = new Libvirt({ connect: uri, timeoutMs: 5000 });
  return await libvirt.versions().then(
    () => "it was believed",
    (error: unknown) => error,
  );
}

async function expectNothingRan(): Promise<void> {
  await expect(access(owned)).rejects.toThrow("ENOENT");
}

describe("a connection URI", () => {
  it("runs no command on the other host by the name of a socket", async () => {
    // As sshd does: the last argument goes to the user's shell.
    const ssh = await program("ssh", 'for last; do :; done; exec sh -c "$last"');
    for (const word of [
      `$(touch ${owned})`,
      `"; touch ${owned}; "`,
      `\`touch ${owned}\``,
      `'; touch ${owned};'`,
    ]) {
      const socket = encodeURIComponent(`/nowhere/${word}`);
      const uri = `qemu+ssh://hv1/system?command=${ssh}&proxy=netcat`;
      const refusals = [
        await refusalOf(`${uri}&socket=${socket}`),
        await refusalOf(`${uri}&netcat=${encodeURIComponent(word)}`),
        await refusalOf(`${uri}&name=${encodeURIComponent(`qemu:${word}`)}`),
      ];
      await expectNothingRan();
      for (const refusal of refusals)
        expect(refusal).toMatchObject({ code: expect.stringMatching(/^E_LIBVIRT/) });
    }
  });

  it("runs no command here by the name of a host or user", async () => {
    // As OpenSSH before 9.6 does with `ProxyCommand nc %h %r`: it checks neither name.
    const ssh = await program(
      "ssh",
      'while [ "$1" != -- ]; do [ "$1" != -l ] || user=$2; shift; done; sh -c "echo $2 $user"; exit 255',
    );
    const commands = [`touch ${owned}`, "id", `touch\${IFS}${owned}`];
    const hostile = commands.flatMap((command) => [`$(${command})`, `\`${command}\``, `';${command};'`]);
    const options = ["-oProxyCommand=id", "-F", "a b", "a\tb", "a\nb", "|id", "x&id", "x>y", "x\\"];
    for (const text of hostile) {
      await refusalOf(`qemu+ssh://${encodeURIComponent(text)}@hv1/system?command=${ssh}`);
      await expectNothingRan();
    }
    for (const text of [...hostile, ...options]) {
      const user = encodeURIComponent(text).replaceAll("'", "%27");
      expect(await refusalOf(`qemu+ssh://${user}@hv1/system?command=${ssh}`)).toMatchObject({
        code: "E_LIBVIRT_URI",
      });
      expect(await refusalOf(`qemu+ssh://${user}/system?command=${ssh}`)).toMatchObject({
        code: "E_LIBVIRT_URI",
      });
    }
    for (const host of [`$(cd;touch\${IFS}owned)`, "x;id", "-oProxyCommand=id", "'x'"]) {
      expect(await refusalOf(`qemu+ssh://${host}/system?command=${ssh}`)).toMatchObject({
        code: "E_LIBVIRT_URI",
      });
    }
    await expectNothingRan();
  });

  it("asks ssh for no option by another parameter", async () => {
    const seen = join(folder, "seen");
    const ssh = await program("ssh", `for each; do printf '%s\\n' "$each"; done > ${seen}; exit 255`);
    const value = encodeURIComponent("/x\nProxyCommand touch owned");
    expect(
      await refusalOf(
        `qemu+libssh://hv1/system?known_hosts=${value}&keyfile=-oProxyCommand%3Did&command=${ssh}`,
      ),
    ).toBeInstanceOf(Error);
    await expectNothingRan();
  });
});

describeUnless(NO_ATTACKER, "a libvirt's socket", () => {
  it("is not believed where another user could put his own daemon", async () => {
    await chmod(folder, 0o711);
    await using stranger = await ScriptedLibvirt.start({
      157: () => new XdrWriter().fixed(Buffer.from([0, 0, 0, 0, 0, 0x89, 0x54, 0x40])),
      4: () => new XdrWriter().fixed(Buffer.from([0, 0, 0, 0, 0, 0x6a, 0xd8, 0x06])),
    });
    expect(await refusalOf(stranger.uri)).toBe("it was believed");
    const theirs = join(stranger.socket, "..");
    await chown(theirs, ATTACKER, ATTACKER);
    const refused = { code: "E_LIBVIRT_OWNER", message: expect.stringMatching(/can change .*--connect/) };
    expect(await refusalOf(stranger.uri)).toMatchObject(refused);
    // What `su` keeps of another user's environment.
    const runtime = join(folder, "runtime");
    await mkdir(join(runtime, "libvirt"), { recursive: true });
    await chown(runtime, ATTACKER, ATTACKER);
    const before = process.env["XDG_RUNTIME_DIR"];
    process.env["XDG_RUNTIME_DIR"] = runtime;
    try {
      expect(await refusalOf("qemu:///session")).toMatchObject(refused);
    } finally {
      if (before === undefined) delete process.env["XDG_RUNTIME_DIR"];
      else process.env["XDG_RUNTIME_DIR"] = before;
    }
  });
});

describeUnless(NO_ATTACKER, "a certificate authority", () => {
  it("is not taken from the home of another user, which su and sudo may keep", async () => {
    // Whatever is read there shows in the message: this can't be read.
    await mkdir(join(folder, ".pki/libvirt/cacert.pem"), { recursive: true });
    const before = process.env["HOME"];
    process.env["HOME"] = folder;
    try {
      const refusal = await refusalOf("qemu+tls://127.0.0.1:1/system");
      expect(refusal).toBeInstanceOf(Error);
      expect((refusal as Error).message).not.toContain(folder);
    } finally {
      process.env["HOME"] = before;
    }
  });
});

describe("a libvirt that wants this process's memory", () => {
  it("gets no more of it for a packet that comes byte by byte", () => {
    const packet = Buffer.alloc(4 * 1024 * 1024);
    packet.writeUInt32BE(packet.length);
    packet.writeUInt32BE(1, 8);
    const splitter = new PacketSplitter();
    const before = process.memoryUsage().heapUsed;
    for (let at = 0; at < packet.length - 1; at += 1) splitter.push(packet.subarray(at, at + 1));
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(100 * 1024 * 1024);
    expect(splitter.push(packet.subarray(-1))).toHaveLength(1);
  });

  it("gets no answer to pings while it reads none", async () => {
    let written = 0;
    const stream = new Duplex({
      read: () => undefined,
      write: (bytes: Buffer) => {
        written += bytes.length;
      },
    });
    const connection = new RpcConnection({
      ...{ stream, keepAwake: () => undefined, reason: async () => undefined },
      close: () => stream.destroy(),
    });
    const ping = encodePacket({
      ...{ program: PROGRAM.keepalive, procedure: 1, type: 2, serial: 0, status: 0 },
      payload: Buffer.alloc(0),
    });
    const many = Buffer.concat(Array<Buffer>(10_000).fill(ping));
    for (let turn = 0; turn < 20; turn += 1) {
      stream.push(many);
      await sleep(0);
    }
    expect(written).toBeGreaterThan(0);
    expect(stream.writableLength).toBeLessThan(128 * 1024);
    connection.close();
  });
});
