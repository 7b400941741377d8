/** What a backup does on another host, through a real sshd. It needs no libvirt. */
import { lchown, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, it, vi } from "vitest";
import { JobFolder } from "../../../src/backup/guest/job-folder.js";
import { WAY } from "../../../src/backup/guest/ssh-job-folder.js";
import { LastingForward } from "../../../src/backup/host/lasting-forward.js";
import { Ssh } from "../../../src/backup/host/ssh.js";
import { openForward, sever } from "../../../src/backup/host/ssh-forward.js";
import { parseConnectionUri } from "../../../src/backup/libvirt/hypervisor.js";
import { SSH_TOOLS, SshHost } from "../../support/ssh-host.js";
import { describeUnless, findTool } from "../../support/tools.js";
import { ZombieProcess } from "../../support/zombie-process.js";

const missing = SSH_TOOLS.filter((tool) => findTool(tool) === undefined);
const obstacle = missing.length > 0 ? `not installed: ${missing.join(", ")}` : undefined;

describeUnless(process.getuid?.() === 0 ? obstacle : "an sshd needs root", "a host reached by ssh", () => {
  const key = {
    repositoryId: "1a2b3c4d-0000-4000-8000-000000000000",
    domainUuid: "f00dcafe-0000-4000-8000-000000000000",
  };
  const run = (id: number) => ({ id, name: "it's off", uuid: key.domainUuid });
  let host: SshHost;
  let ssh: Ssh;
  let parent: string;
  let folder: JobFolder;
  beforeAll(async () => {
    host = await SshHost.start();
    const { hypervisor } = parseConnectionUri(host.uri, { runtimeFolder: "/nowhere" });
    if (hypervisor.kind !== "ssh") throw new Error(host.uri);
    ssh = new Ssh(hypervisor.target);
  });
  afterAll(() => host[Symbol.asyncDispose]());
  beforeEach(async () => {
    // Folder names may contain quotes, blanks and shell metacharacters.
    parent = await mkdtemp(join(tmpdir(), "nbdpull 'far' $HOME-"));
    folder = JobFolder.at(parent, key, ssh);
  });
  afterEach(async () => {
    await rm(parent, { recursive: true, force: true });
    await rm(folder.here, { recursive: true, force: true });
  });

  it("holds a job folder that has one living owner and is removed with its content, but not what its links point to", async () => {
    expect(await folder.livingOwner()).toBeUndefined();
    await folder.claim({ uid: 64_055, gid: 108 });
    expect(await folder.livingOwner()).toContain(String(process.pid));
    await expect(folder.claim(undefined)).rejects.toThrow(/not empty/);
    expect(await readdir(parent)).toEqual([expect.stringMatching(/^nbdpull-1a2b3c4d-[0-9a-f]{12}$/)]);
    expect(await stat(join(folder.path, "qemu"))).toMatchObject({ uid: 64_055, gid: 108, mode: 0o40700 });
    expect((await stat(folder.path)).mode & 0o777).toBe(0o711);

    expect(await folder.isMarkedFrozen(run(7))).toBe(false);
    await folder.markFrozen(run(7));
    expect(await folder.isMarkedFrozen(run(7))).toBe(true);
    expect(await folder.isMarkedFrozen(run(8))).toBe(false);
    const boot = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
    expect(await readFile(join(folder.path, "frozen"), "utf8")).toBe(`7/${boot}/`);
    await writeFile(join(folder.path, "frozen"), `7/${key.domainUuid}/`);
    expect(await folder.isMarkedFrozen(run(7))).toBe(false);
    await writeFile(join(folder.path, "frozen"), "");
    expect(await folder.isMarkedFrozen(run(8))).toBe(true);
    // The host is out of reach: what this process knows counts, so that libvirt is asked to thaw.
    const unreachable = vi.spyOn(Ssh.prototype, "run").mockRejectedValue(new Error("no route to host"));
    expect(await folder.isMarkedFrozen(run(7))).toBe(true);
    unreachable.mockRestore();
    await folder.unmarkFrozen();
    expect(await folder.isMarkedFrozen(run(7))).toBe(false);

    const kept = join(parent, "kept");
    await writeFile(kept, "");
    await writeFile(folder.scratch("vda"), "");
    await symlink(kept, folder.scratch("vdb"));
    await folder.remove();
    await folder.remove();
    expect(await readdir(parent)).toEqual(["kept"]);
    await expect(stat(folder.here)).rejects.toMatchObject({ code: "ENOENT" });
  });

  it("refuses a job folder that another user made, and one that can't be made", async () => {
    await mkdir(folder.path);
    await lchown(folder.path, 65_534, 65_534);
    for (const attempt of [() => folder.livingOwner(), () => folder.remove()]) {
      await expect(attempt()).rejects.toMatchObject({ code: "E_SCRATCH_OWNER" });
    }
    const nowhere = JobFolder.at(join(parent, "none"), key, ssh);
    await expect(nowhere.claim(undefined)).rejects.toMatchObject({ code: "E_SCRATCH_PATH" });
    expect(() => JobFolder.at("relative", key, ssh)).toThrow(
      expect.objectContaining({ code: "E_SCRATCH_PATH" }),
    );
  });

  it("distinguishes a failed script from an unreachable host, and never prompts", async () => {
    await expect(ssh.run("echo broken >&2; exit 7", {})).rejects.toMatchObject({
      exitCode: 7,
      said: "broken",
    });
    const odd = `a'b "c" $d \`e\` \\ \n f`;
    expect(await ssh.run('printf %s "$odd"', { odd })).toBe(odd);
    const nobody = new Ssh({ ...ssh.target, user: "no-such-user" });
    await expect(nobody.run(":", {})).rejects.toMatchObject({ code: "E_SSH" });
    const missing = new Ssh({ ...ssh.target, program: "/no/such/ssh" });
    await expect(missing.run(":", {})).rejects.toMatchObject({ code: "E_NO_SSH" });
  });

  /** Says `hello` to every client. */
  async function greeter(path: string): Promise<{ server: Server; sockets: Set<Socket> }> {
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on("close", () => sockets.delete(socket)).on("error", () => undefined);
      socket.write("hello");
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return { server, sockets };
  }

  async function greetingOf(path: string): Promise<Socket> {
    const socket = connect(path);
    await new Promise<void>((resolve, reject) => {
      socket.once("data", (data) => resolve(expect(data.toString()).toBe("hello")));
      socket.once("error", reject).once("close", () => reject(new Error("closed")));
    });
    return socket;
  }

  it("opens a forward anew whose ssh is stopped, or its sshd, and keeps one that answers", async () => {
    const plain = await mkdtemp(join(tmpdir(), "nbdpull-far-"));
    const there = join(plain, "there.sock");
    const { server, sockets } = await greeter(there);
    const [here, note] = [join(plain, "here.sock"), join(plain, "way")];
    const options = { to: { kind: "unix", path: there }, socket: here, note } as const;
    const stays = new AbortController().signal;
    try {
      {
        await using living = await LastingForward.open(ssh, options);
        const kept = await greetingOf(here);
        await living.restore(stays);
        expect(kept.destroyed).toBe(false);
        kept.destroy();
      }
      await using forward = await LastingForward.open(ssh, options, 300);
      for (const whose of ["ssh", "sshd"]) {
        const sshd = Number((await readFile(note, "utf8")).split(" ")[0]);
        const [client = 0] = await pidsOf(`-L${NUL}${here}:${there}`);
        process.kill(whose === "ssh" ? client : sshd, "SIGSTOP");
        await Promise.all([forward.restore(stays), forward.restore(stays)]);
        (await greetingOf(here)).destroy();
        // Neither end of the old one is left.
        expect(await pidsOf(`-L${NUL}${here}:${there}`)).not.toContain(client);
        await expect.poll(() => isThere(sshd)).toBe(false);
      }
    } finally {
      for (const socket of sockets) socket.destroy();
      server.close();
      await rm(plain, { recursive: true, force: true });
    }
  });

  it("waits for no helper of ssh's that ignores every signal and holds its output", async () => {
    const plain = await mkdtemp(join(tmpdir(), "nbdpull-far-"));
    const [here, there] = [join(plain, "here.sock"), join(plain, "there.sock")];
    const { server, sockets } = await greeter(there);
    const mark = `nbdpull-stays-${basename(plain)}`;
    // Like that of ProxyJump, but that it stays for longer than this test may take.
    const { program = "ssh", keyFile, settings } = ssh.target;
    const alone = [...settings, "ControlMaster=no", "ControlPath=none"];
    const jump = [
      ...[program, "-i", keyFile, "-p", host.port, ...alone.flatMap((each) => ["-o", each])],
      ...["-W", `127.0.0.1:${host.port}`, "root@127.0.0.1"],
    ];
    const proxy = `ProxyCommand=sh -c 'trap "" HUP INT TERM PIPE; ${jump.join(" ")}; sleep 60' ${mark}`;
    const far = new Ssh({ ...ssh.target, settings: [...alone, proxy] });
    const helpers = (): Promise<number[]> => pidsOf(`${mark}${NUL}`);
    const stays = new AbortController().signal;
    const began = performance.now();
    try {
      const forward = await LastingForward.open(
        far,
        { to: { kind: "unix", path: there }, socket: here },
        300,
      );
      const [stopped = 0] = await pidsOf(`-L${NUL}${here}:${there}`);
      process.kill(stopped, "SIGSTOP");
      await forward.restore(stays);
      (await greetingOf(here)).destroy();
      expect(await pidsOf(`-L${NUL}${here}:${there}`)).not.toContain(stopped);
      const [killed = 0] = await pidsOf(`-L${NUL}${here}:${there}`);
      process.kill(killed, "SIGKILL");
      const lost = new Promise((resolve) => forward.lost.addEventListener("abort", resolve));
      expect(await Promise.all([far.run("echo well", {}), lost])).toEqual(["well", expect.anything()]);
      await forward.close();
      await expect.poll(helpers).toEqual([]);
      // The helper would stay for a minute.
      expect(performance.now() - began).toBeLessThan(50_000);
    } finally {
      for (const pid of await helpers()) process.kill(pid, "SIGKILL");
      for (const socket of sockets) socket.destroy();
      server.close();
      await rm(plain, { recursive: true, force: true });
    }
  });

  it("loses a forward at its far end when it is closed, and when its note severs it", async () => {
    const plain = await mkdtemp(join(tmpdir(), "nbdpull-far-"));
    const there = join(plain, "there.sock");
    const { server, sockets } = await greeter(there);
    try {
      const here = join(plain, "here.sock");
      const note = join(plain, "way");
      const options = { to: { kind: "unix", path: there }, socket: here, note } as const;
      const closed = await openForward(ssh, options);
      expect((await stat(here)).mode & 0o777).toBe(0o600);
      (await greetingOf(here)).destroy();
      await closed.close();
      await expect.poll(() => sockets.size).toBe(0);
      expect(closed.lost.aborted).toBe(false);

      const lost = await openForward(ssh, options);
      await greetingOf(here);
      expect(await readFile(note, "utf8")).toMatch(/^\d+ \d+ [0-9a-f-]{36}\n$/);
      await sever(ssh, note);
      await expect.poll(() => sockets.size).toBe(0);
      await expect(stat(note)).rejects.toMatchObject({ code: "ENOENT" });
      expect(await lost.explain(new Error("closed"))).toMatchObject({ code: "E_SSH_LOST" });
      await lost.close();

      // A later process with the same ID is not ours.
      await writeFile(note, `${process.pid} 1 ${"0".repeat(8)}-0000-0000-0000-${"0".repeat(12)}\n`);
      await sever(ssh, note);

      // One that has ended is not waited for, though nobody collects its exit code.
      await using left = await ZombieProcess.start();
      let least = Number.POSITIVE_INFINITY;
      for (let turn = 0; turn < 4 && least > 1800; turn += 1) {
        await writeFile(note, `${left.pid} ${left.start} ${left.boot}\n`);
        const began = performance.now();
        await sever(ssh, note);
        least = Math.min(least, performance.now() - began);
      }
      // One that is waited for is waited for two seconds each time.
      expect(least).toBeLessThan(1800);
    } finally {
      server.close();
      await rm(plain, { recursive: true });
    }
  });

  it("severs no line but the one that was meant, however late the host comes to that", async () => {
    const plain = await mkdtemp(join(tmpdir(), "nbdpull-far-"));
    const there = join(plain, "there.sock");
    const { server, sockets } = await greeter(there);
    try {
      await folder.claim(undefined);
      const note = folder.fileThere(WAY);
      const options = { to: { kind: "unix", path: there }, socket: join(plain, "here.sock"), note } as const;
      expect(await folder.line()).toBeUndefined();
      const dead = await openForward(ssh, options);
      const line = await folder.line();
      expect(`${line}\n`).toBe(await readFile(note, "utf8"));
      await dead.close();
      await expect.poll(() => folder.line()).toBeUndefined();

      await using living = await openForward(ssh, options);
      await greetingOf(options.socket);
      const { signal } = new AbortController();
      await folder.sever({ line, signal });
      // Nor one that was opened while it was on its way.
      const slow = new Ssh(ssh.target);
      vi.spyOn(slow, "run").mockImplementation((script, values) =>
        values["line"] === undefined ? Promise.resolve(line ?? "") : ssh.run(script, values),
      );
      await sever(slow, note);
      const present = await folder.line();
      expect(present).not.toBe(line);
      const over = AbortSignal.abort(new Error("enough"));
      await expect(folder.sever({ line: present, signal: over })).rejects.toThrow("enough");
      await greetingOf(options.socket);
      expect(living.lost.aborted).toBe(false);

      await folder.sever({ line: present, signal });
      await expect.poll(() => sockets.size).toBe(0);
      expect(await folder.line()).toBeUndefined();
    } finally {
      server.close();
      await rm(plain, { recursive: true });
    }
  });

  it("explains why a forward fails: the far side refuses it, or ssh can't express its path", async () => {
    const plain = await mkdtemp(join(tmpdir(), "nbdpull-far-"));
    try {
      const here = join(plain, "here.sock");
      const to = { kind: "unix", path: join(plain, "nobody.sock") } as const;
      const forward = await openForward(ssh, { to, socket: here });
      await expect(greetingOf(here)).rejects.toThrow();
      const error = await forward.explain(new Error("closed"));
      expect(error).toMatchObject({ code: "E_SSH_FORWARD", message: expect.stringContaining("open failed") });
      await forward.close();
      const odd = { to: { kind: "unix", path: "/tmp/a:b.sock" }, socket: here } as const;
      await expect(openForward(ssh, odd)).rejects.toMatchObject({ code: "E_SSH_PATH" });
    } finally {
      await rm(plain, { recursive: true });
    }
  });
});

const NUL = "\0";

function isThere(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** The processes that have this in their arguments, each of which ends with a zero byte. */
async function pidsOf(words: string): Promise<number[]> {
  const pids: number[] = [];
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const line = await readFile(`/proc/${name}/cmdline`, "utf8").catch(() => "");
    if (line.includes(words)) pids.push(Number(name));
  }
  return pids;
}
