/**
 * Every way to a libvirt, with real daemons: sessions, polkit, ssh, TLS, SASL; and no other program started.
 */

import { existsSync } from "node:fs";
import { chmod, chown, cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { listensOn, makeAuthority, makeFolder, type RunningServer, startServer } from "../nbd/servers.js";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { nbdpull, runNbdpull } from "../support/nbdpull.js";
import { SshHost } from "../support/ssh-host.js";

/** Logs each program that Node starts, by whatever function of its module, however that was imported. */
const LOG_PROGRAMS = `
const { ChildProcess } = require("node:child_process");
const { spawn } = ChildProcess.prototype;
ChildProcess.prototype.spawn = function (options) {
  require("node:fs").appendFileSync(process.env.PROGRAMS, options.file + "\\n");
  return spawn.call(this, options);
};
`;

/** A libvirtd of its own that listens on ports; of the system's it shares neither sockets nor domains. */
async function startDaemon(folder: string, ports: { tls: number; tcp: number }): Promise<RunningServer> {
  const config = [
    ...["listen_tls = 1", `tls_port = "${ports.tls}"`, 'auth_tls = "none"', 'listen_addr = "127.0.0.1"'],
    ...["listen_tcp = 1", `tcp_port = "${ports.tcp}"`, 'auth_tcp = "sasl"', 'auth_unix_rw = "none"'],
    ...[`key_file = "${folder}/server-key.pem"`, `cert_file = "${folder}/server-cert.pem"`],
    ...[`ca_file = "${folder}/ca-cert.pem"`, ""],
  ];
  await writeFile(join(folder, "libvirtd.conf"), config.join("\n"));
  const hidden = ["/run/libvirt", "/var/lib/libvirt", "/etc/libvirt", "/var/cache/libvirt"];
  const mounts = hidden.map((path) => `mount -t tmpfs none ${path}`).join(" && ");
  const script = `${mounts} && exec libvirtd -l -f "$0/libvirtd.conf" -p "$0/pid"`;
  return await startServer("unshare", ["--mount", "sh", "-c", script, folder], () => listensOn(ports.tls));
}

/** The list in which an authority says that it has revoked one of its certificates. */
async function revokedBy(authority: string, role: "client" | "server"): Promise<string> {
  const file = (name: string): string => join(authority, name);
  const list = file(`without-${role}.pem`);
  await writeFile(file("crl.info"), "crl_next_update = 2\ncrl_number = 1\n");
  await execa("certtool", [
    ...["--generate-crl", "--load-ca-certificate", file("ca-cert.pem"), "--outfile", list],
    ...["--load-ca-privkey", file("ca-key.pem"), "--load-certificate", file(`${role}-cert.pem`)],
    ...["--template", file("crl.info")],
  ]);
  return await readFile(list, "utf8");
}

const POLKITD = "/usr/lib/polkit-1/polkitd";
/** A libvirtd, and a system bus with polkit that only it sees. All end with the shell. */
const WITH_POLKIT = `
for path in /run/libvirt /var/lib/libvirt /etc/libvirt /var/cache/libvirt /run/dbus; do mount -t tmpfs none $path; done
dbus-daemon --system --nofork --nopidfile & bus=$!
while [ ! -S /run/dbus/system_bus_socket ]; do sleep 0.05; done
${POLKITD} --no-debug > /dev/null 2>&1 & polkit=$!
libvirtd -f "$0/libvirtd.conf" -p "$0/pid" & libvirt=$!
trap 'kill $libvirt $polkit $bus' TERM
wait; wait`;

interface Ids {
  readonly uid: number;
  readonly gid: number;
}

async function idsOfNobody(): Promise<Ids> {
  const [uid, gid] = await Promise.all(["-u", "-g"].map((of) => execa("id", [of, "nobody"])));
  return { uid: Number(uid?.stdout), gid: Number(gid?.stdout) };
}

/** What libvirt answers to another user, with these variables in the environment. */
async function as({ uid }: Ids, env: Record<string, string>, connect: string | undefined): Promise<unknown> {
  const ours = { ...process.env };
  process.seteuid?.(uid);
  Object.assign(process.env, env);
  try {
    await using libvirt = new Libvirt({ connect });
    return await libvirt.versions();
  } finally {
    process.seteuid?.(0);
    for (const name of Object.keys(env)) delete process.env[name];
    Object.assign(process.env, ours);
  }
}

const answerOf = async (connect: string): Promise<unknown> => {
  await using libvirt = new Libvirt({ connect });
  return await libvirt.versions();
};
const VERSIONS = { libvirt: expect.stringMatching(/^\d+\.\d+\.\d+$/), hypervisor: expect.any(String) };

await describeWithLibvirt("libvirt", () => {
  it("is reached by TLS with certificates both ways, and says what is wrong with them", async () => {
    await using folder = await makeFolder();
    const { path } = await makeAuthority(folder, "pki", ["localhost"], "rsa");
    const ports = { tls: await freePort(), tcp: await freePort() };
    await using _ = await startDaemon(path, ports);
    const pki = async (name: string, from: string, ...files: string[]): Promise<string> => {
      await mkdir(join(folder.path, name));
      for (const file of files) {
        const theirs = file.replace("cacert", "ca-cert").replace("client", "client-");
        await cp(join(from, theirs), join(folder.path, name, file));
      }
      return `?pkipath=${join(folder.path, name)}`;
    };
    const all = ["cacert.pem", "clientcert.pem", "clientkey.pem"];
    const good = await pki("good", path, ...all);
    const tls = `qemu+tls://localhost:${ports.tls}/system`;
    expect(await answerOf(tls + good)).toEqual(VERSIONS);
    expect(await answerOf(`qemu://localhost:${ports.tls}/system${good}`)).toEqual(VERSIONS);

    const refused = { code: "E_LIBVIRT_TLS" };
    const stranger = (await makeAuthority(folder, "stranger", ["localhost"], "rsa")).path;
    await expect(answerOf(tls + (await pki("bare", path, "cacert.pem")))).rejects.toMatchObject(refused);
    await expect(answerOf(tls + (await pki("other", stranger, ...all)))).rejects.toMatchObject(refused);
    await expect(answerOf(`${tls}?pkipath=/nowhere`)).rejects.toMatchObject(refused);
    const named = `qemu+tls://127.0.0.1:${ports.tls}/system`;
    await expect(answerOf(named + good)).rejects.toMatchObject(refused);
    expect(await answerOf(`${named}${good}&no_verify=1`)).toEqual(VERSIONS);

    // What its authority has revoked is refused, also where the list is not the first of its file.
    const [harmless, fatal] = [await revokedBy(path, "client"), await revokedBy(path, "server")];
    const withList = async (name: string, text: string): Promise<string> => {
      const uri = await pki(name, path, ...all);
      await writeFile(join(folder.path, name, "cacrl.pem"), text);
      return uri;
    };
    expect(await answerOf(tls + (await withList("harmless", harmless)))).toEqual(VERSIONS);
    const revoked = { ...refused, message: expect.stringContaining("revoked") };
    await expect(answerOf(tls + (await withList("revoked", fatal)))).rejects.toMatchObject(revoked);
    const strangers = await revokedBy(stranger, "server");
    const second = await withList("second", strangers + fatal);
    await expect(answerOf(tls + second)).rejects.toMatchObject(revoked);
    await expect(answerOf(tls + (await withList("nonsense", "x")))).rejects.toMatchObject(refused);
    expect(await answerOf(`${tls}${second}&no_verify=1`)).toEqual(VERSIONS);
    // A user's own list counts, as the user's own certificates do.
    const home = join(folder.path, "home");
    const nobody = await idsOfNobody();
    await mkdir(join(home, ".pki"), { recursive: true });
    await cp(join(folder.path, "good"), join(home, ".pki", "libvirt"), { recursive: true });
    await execa("chown", ["-R", `${nobody.uid}:${nobody.gid}`, home]);
    await chmod(folder.path, 0o755);
    expect(await as(nobody, { HOME: home }, tls)).toEqual(VERSIONS);
    await writeFile(join(home, ".pki", "libvirt", "cacrl.pem"), fatal);
    await expect(as(nobody, { HOME: home }, tls)).rejects.toMatchObject(revoked);

    const sasl = `qemu+tcp://localhost:${ports.tcp}/system`;
    await expect(answerOf(sasl)).rejects.toMatchObject({ code: "E_LIBVIRT_SASL" });
    const deserted = `qemu+tls://localhost:${await freePort()}/system${good}`;
    await expect(answerOf(deserted)).rejects.toMatchObject({ code: "E_LIBVIRT" });
    const shown = await nbdpull("doctor", "--connect", tls + good, "--json");
    expect(shown.json()).toContainEqual(
      expect.objectContaining({ check: "libvirt", cause: expect.stringContaining("localhost") }),
    );
  });

  it("is reached by ssh through virt-ssh-helper, or through nc where there is none", async () => {
    await using host = await SshHost.start();
    expect(await answerOf(host.uri)).toEqual(VERSIONS);
    await using folder = await makeFolder();
    // As nc does, it ends at the end of its input.
    const netcat = join(folder.path, "nc");
    const script = `if (process.argv[2] === "-U") {
  const socket = require("node:net").connect(process.argv[3]);
  process.stdin.pipe(socket).pipe(process.stdout);
}`;
    await writeFile(netcat, `#!${process.execPath}\n${script}\n`);
    await chmod(netcat, 0o755);
    expect(await answerOf(`${host.uri}&proxy=netcat&netcat=${netcat}`)).toEqual(VERSIONS);
    const missing = { code: "E_LIBVIRT", message: expect.stringContaining("not found") };
    await expect(answerOf(`${host.uri}&proxy=netcat&netcat=/no/nc`)).rejects.toMatchObject(missing);
    await host.cut();
    await host.end();
    await expect(answerOf(host.uri)).rejects.toMatchObject({
      code: "E_LIBVIRT",
      message: expect.stringContaining("can't be reached by ssh"),
    });
    await expect(answerOf("qemu+ssh://x/system?command=/no/ssh")).rejects.toMatchObject({ code: "E_NO_SSH" });
  });

  it("does not let in who may not use its socket, and says what would help", async () => {
    await using folder = await makeFolder();
    const socket = join(folder.path, "libvirt.sock");
    const { createServer } = await import("node:net");
    const server = createServer().listen(socket);
    await chmod(folder.path, 0o755);
    await chmod(socket, 0o600);
    const nobody = Number((await execa("id", ["-u", "nobody"])).stdout);
    try {
      process.seteuid?.(nobody);
      await expect(answerOf(`qemu+unix:///system?socket=${socket}`)).rejects.toMatchObject({
        code: "E_LIBVIRT_ACCESS",
        message: expect.stringMatching(/group libvirt.*sudo.*qemu:\/\/\/session/s),
      });
    } finally {
      process.seteuid?.(0);
      server.close();
    }
  });

  it("is an own one for each user, by URI, default or alias", async () => {
    await using folder = await makeFolder();
    const nobody = await idsOfNobody();
    await chown(folder.path, nobody.uid, nobody.gid);
    const env = { HOME: folder.path, XDG_RUNTIME_DIR: folder.path };
    await mkdir(join(folder.path, ".config", "libvirt"), { recursive: true });
    await writeFile(
      join(folder.path, ".config", "libvirt", "libvirt.conf"),
      'uri_aliases = [ "mine=qemu:///session" ]\n',
    );
    for (const name of [".config", ".config/libvirt"]) {
      await chown(join(folder.path, name), nobody.uid, nobody.gid);
    }
    const nowhere = { XDG_RUNTIME_DIR: join(folder.path, "nothing") };
    await expect(as(nobody, { ...env, ...nowhere }, undefined)).rejects.toMatchObject({
      code: "E_LIBVIRT",
      message: expect.stringContaining("libvirtd --timeout 120 -d"),
    });
    const user = ["--reuid", String(nobody.uid), "--regid", String(nobody.gid), "--clear-groups"];
    const variables = [`HOME=${folder.path}`, `XDG_RUNTIME_DIR=${folder.path}`];
    await using _ = await startServer("setpriv", [...user, "env", ...variables, "libvirtd"], () =>
      listensOn(join(folder.path, "libvirt", "libvirt-sock")),
    );
    expect(await as(nobody, env, undefined)).toEqual(VERSIONS);
    expect(await as(nobody, env, "mine")).toEqual(VERSIONS);
    expect(await as(nobody, { ...env, LIBVIRT_DEFAULT_URI: "mine" }, undefined)).toEqual(VERSIONS);
  });

  it.skipIf(!existsSync(POLKITD))(
    "asks polkit, which lets root in and nobody else without an agent",
    async () => {
      await using folder = await makeFolder();
      await chmod(folder.path, 0o755);
      const config = `auth_unix_rw = "polkit"\nunix_sock_rw_perms = "0777"\nunix_sock_dir = "${folder.path}"\n`;
      await writeFile(join(folder.path, "libvirtd.conf"), config);
      const socket = join(folder.path, "libvirt-sock");
      await using _ = await startServer("unshare", ["--mount", "sh", "-c", WITH_POLKIT, folder.path], () =>
        listensOn(socket),
      );
      const uri = `qemu+unix:///system?socket=${socket}`;
      expect(await answerOf(uri)).toEqual(VERSIONS);
      await expect(as(await idsOfNobody(), {}, uri)).rejects.toMatchObject({
        code: "E_LIBVIRT_ACCESS",
        message: expect.stringMatching(/polkit.*group libvirt.*sudo.*qemu:\/\/\/session/s),
      });
    },
  );

  it.each([
    // QEMU's tools, and what bounds them.
    ["root, as this process is", false, ["prlimit", "qemu-img", "qemu-nbd"]],
    // The scratch folder is tried as that user, too.
    ["a user of its own", true, ["prlimit", "qemu-img", "qemu-nbd", "touch"]],
  ])("takes no process of another program where QEMU runs as %s", async (_, unprivileged, programs) => {
    await using guest = await BackupLab.start({ unprivileged });
    // QEMU's user has to get there.
    await chmod(guest.scratch, 0o755);
    const log = join(guest.folder, "programs");
    const hook = join(guest.folder, "hook.cjs");
    await writeFile(hook, LOG_PROGRAMS);
    const env = { NODE_OPTIONS: `--require ${hook}`, PROGRAMS: log };
    const { domain } = guest.lab;
    const scratch = ["--scratch", guest.scratch];
    const commands: string[][] = [
      ["backup", ...guest.arguments().slice(1)],
      ["backup", ...guest.arguments().slice(1), "--prove-base", "all"],
      ["doctor", domain, ...scratch],
      ["verify", guest.repo, domain, "--live", ...scratch],
      ["verify", guest.repo],
      ["repair", guest.repo, domain, "--from-domain", ...scratch],
      ["points", guest.repo],
      ["prune", guest.repo, "--keep-last", "1"],
      ["restore", guest.repo, domain, "--to", join(guest.folder, "there"), `--define=${domain}-new`],
    ];
    for (const command of commands) expectExit(await runNbdpull(command, { env }), 0);
    await virsh("undefine", `${domain}-new`);
    // Another user's QEMU can't make the socket of the lab's own job.
    if (!unprivileged) {
      await using _ = await guest.lab.beginBackup();
      const attached = ["attach", domain, "--to", join(guest.folder, "attached"), "--end-job"];
      expectExit(await runNbdpull(attached, { env }), 0);
    }
    const started = new Set((await readFile(log, "utf8")).trim().split("\n"));
    expect([...started].sort()).toEqual(programs);
  });
});
