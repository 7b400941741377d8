/**
 * The attack: whoever can write the header of a stopped domain's image (its QEMU, or the maker of the image)
 * names a file there that only root may read, and finds its content in the backup.
 */
import {
  chmod,
  chown,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type ToolUsers, toolUsers } from "../../src/backup/guest/confined-tool.js";
import type { DiskFile } from "../../src/backup/guest/qemu-img.js";
import type { ImageServer } from "../../src/backup/guest/qemu-nbd.js";
import { StoppedDisk } from "../../src/backup/guest/stopped-disk.js";
import type { StatedLinks } from "../../src/backup/libvirt/documents/stated-chain.js";
import { NbdClient } from "../../src/nbd/index.js";
import { qemuImg, qemuIo } from "../support/qemu-nbd.js";
import { describeUnless, findTool } from "../support/tools.js";

const MiB = 1024 * 1024;
/** QEMU's user here, which is also the attacker. */
const NOBODY = 65534;
const NOTHING: StatedLinks = { backing: undefined, dataFile: undefined };
const ENDS: StatedLinks = { backing: null, dataFile: undefined };
const NEEDED = ["qemu-img", "qemu-nbd", "qemu-io", "setpriv", "prlimit"];

let folder: string;
let sockets: string;
let users: ToolUsers | undefined;
let made = 0;
const opened: AsyncDisposable[] = [];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-hostile-"));
  await chmod(folder, 0o755);
  users = await toolUsers({ uid: NOBODY, gid: NOBODY });
  sockets = join(folder, "sockets");
  await mkdir(sockets);
  await chown(sockets, 0, users?.group ?? 0);
  await chmod(sockets, 0o770);
});
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each[Symbol.asyncDispose]();
  expect(await servers()).toEqual([]);
  await rm(folder, { recursive: true, force: true });
});

const at = (name: string): string => join(folder, name);
const qcow2 = (name: string): DiskFile => ({ path: at(name), kind: "file", format: "qcow2" });

/** The process IDs of the tools that serve: nobody else is in their group. */
async function servers(): Promise<string[]> {
  const { stdout } = await execa("pgrep", ["-x", "qemu-nbd"], { reject: false });
  const ids = stdout.split("\n").filter((id) => id !== "");
  const groups = await Promise.all(
    ids.map((id) =>
      stat(`/proc/${id}`).then(
        ({ gid }) => gid,
        () => 0,
      ),
    ),
  );
  return ids.filter((_, index) => groups[index] === users?.group);
}

async function open(image: DiskFile, stated = NOTHING): Promise<StoppedDisk> {
  const newSocket = (): string => {
    made += 1;
    return join(sockets, `${made}.sock`);
  };
  const disk = await StoppedDisk.open(image, stated, { users, newSocket, signal: undefined });
  opened.push(disk);
  return disk;
}

async function serve(disk: StoppedDisk): Promise<ImageServer> {
  const server = await disk.serve({ name: "vda", bitmap: undefined });
  opened.push(server);
  return server;
}

/** The first byte at each of the offsets, as a backup would read them. */
async function bytesOf(server: ImageServer, ...offsets: readonly number[]): Promise<number[]> {
  const client = await NbdClient.connect(server.address, { connections: 1 });
  try {
    const bytes = Buffer.alloc(512);
    const found: number[] = [];
    for (const offset of offsets) {
      await client.read(offset, bytes);
      found.push(bytes[0] ?? -1);
    }
    return found;
  } finally {
    await client.close();
  }
}

/** A file that only root may read, filled with 0x5e. */
async function secret(name: string): Promise<string> {
  await writeFile(at(name), Buffer.alloc(MiB, 0x5e));
  await chmod(at(name), 0o600);
  return at(name);
}

async function image(name: string, mode: number, ...more: readonly string[]): Promise<DiskFile> {
  await qemuImg("create", "-q", "-f", "qcow2", ...more, at(name), "1M");
  await chmod(at(name), mode);
  return qcow2(name);
}

async function statusOf(pid: string): Promise<Record<string, string>> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Object.fromEntries(status.split("\n").map((line) => line.split(/:\s+/, 2)));
}

const obstacle =
  process.getuid?.() !== 0
    ? "it needs root"
    : NEEDED.filter((tool) => findTool(tool) === undefined)
        .map((tool) => `not installed: ${tool}`)
        .join();

describeUnless(obstacle || undefined, "an image whose header names a file that only root may read", () => {
  it.each([
    ["a backing file, and the definition says nothing", NOTHING],
    ["a backing file, and the definition ends the chain", ENDS],
  ])("is refused: %s", async (_, stated) => {
    const disk = await image("disk.qcow2", 0o644, "-b", await secret("shadow"), "-F", "raw");
    const refused = open(disk, stated);
    await expect(refused).rejects.toMatchObject({ code: "E_IMAGE_CHAIN", details: { names: at("shadow") } });
    await expect(refused).rejects.toThrow("was not opened");
  });

  it("is refused if it names a data file, wherever in the chain", async () => {
    await image("base.qcow2", 0o644, "-o", `data_file=${at("shadow")},data_file_raw=on`);
    await secret("shadow");
    const refused = { code: "E_IMAGE_CHAIN", details: { names: at("shadow") } };
    await expect(open(qcow2("base.qcow2"))).rejects.toMatchObject(refused);
    await expect(open(qcow2("base.qcow2"), ENDS)).rejects.toMatchObject(refused);
    const top = await image("top.qcow2", 0o644, "-b", at("base.qcow2"), "-F", "qcow2");
    await expect(open(top)).rejects.toMatchObject(refused);
    // Nor is a data file opened that was not looked at, where root is QEMU's user and the chain is stated.
    users = await toolUsers(undefined);
    await expect(open(qcow2("base.qcow2"), ENDS)).rejects.toMatchObject(refused);
  });

  it("is refused if it names a server, or a description, and nobody is called", async () => {
    let calls = 0;
    const server = createServer((socket) => {
      calls += 1;
      socket.destroy();
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    const named = [
      `nbd:127.0.0.1:${port}`,
      `nbd://127.0.0.1:${port}/x`,
      `json:{"driver":"file","filename":"${await secret("shadow")}"}`,
    ];
    for (const name of named) {
      const disk = await image("disk.qcow2", 0o644);
      await qemuImg("rebase", "-u", "-b", name, "-F", "raw", disk.path);
      await expect(open(disk)).rejects.toMatchObject({ code: "E_DISK_UNFIT" });
    }
    server.close();
    expect(calls).toBe(0);
  });

  it("is served with what QEMU's user may read, or the definition names", async () => {
    const base = await image("base.qcow2", 0o640);
    await qemuIo(base.path, "qcow2", "write -P 0x31 0 64k");
    const data = at("data.raw");
    const top = await image("top.qcow2", 0o600, "-b", base.path, "-F", "qcow2", "-o", `data_file=${data}`);
    await qemuIo(top.path, "qcow2", "write -P 0x32 64k 64k");
    await chmod(data, 0o644);
    await expect(open(top)).rejects.toMatchObject({ code: "E_IMAGE_CHAIN", details: { names: base.path } });
    const stated: StatedLinks = {
      dataFile: undefined,
      backing: { type: "file", path: base.path, format: "qcow2", ...ENDS },
    };
    await expect(open(top, stated)).rejects.toMatchObject({
      code: "E_IMAGE_CHAIN",
      details: { uid: NOBODY },
    });
    await chown(base.path, 0, NOBODY);
    const disk = await open(top, stated);
    expect(disk.size).toBe(MiB);
    expect(disk.paths).toEqual([top.path, data, base.path]);
    const server = await serve(disk);
    expect(await bytesOf(server, 0, 65536, 131072)).toEqual([0x31, 0x32, 0]);
    await expect(qemuIo(base.path, "qcow2", "write 0 64k")).rejects.toThrow(/"write" lock/);
  });
});

describeUnless(obstacle || undefined, "the processes that read the image of a stopped domain", () => {
  it("have no capabilities, root's image included, and nobody else of QEMU's user reaches them", async () => {
    const disk = await image("disk.qcow2", 0o600);
    await qemuIo(disk.path, "qcow2", "write -P 0x41 0 64k");
    const server = await serve(await open(disk));
    expect(await bytesOf(server, 0, 65536)).toEqual([0x41, 0]);
    const found = await servers();
    const states = await Promise.all(found.map(statusOf));
    expect(states.map(({ Uid }) => Uid?.split("\t")[0]).sort()).toEqual(["0", String(NOBODY)]);
    for (const state of states) {
      expect(state).toMatchObject({
        CapEff: "0000000000000000",
        CapPrm: "0000000000000000",
        NoNewPrivs: "1",
      });
    }
    for (const pid of found) {
      const limits = await readFile(`/proc/${pid}/limits`, "utf8");
      expect(limits).toMatch(/Max core file size\s+0/);
      expect(limits).toMatch(/Max file size\s+0/);
    }
    const { transport } = server.address;
    const path = transport.kind === "unix" ? transport.path : "";
    const probe = `require("net").connect(${JSON.stringify(path)}).on("connect", () => process.exit(0)).on("error", (e) => { console.error(e.code); process.exit(1); })`;
    const asNobody = ["--reuid", String(NOBODY), "--regid", String(NOBODY), "--clear-groups"];
    const stranger = await execa("setpriv", [...asNobody, process.execPath, "-e", probe], { reject: false });
    expect(stranger).toMatchObject({ exitCode: 1, stderr: "EACCES" });
    for (const pid of found) {
      const traced = await execa("setpriv", [...asNobody, "cat", `/proc/${pid}/environ`], { reject: false });
      expect(traced.failed).toBe(true);
    }
  });

  it("don't open what QEMU's user put in the place of its image", async () => {
    await secret("shadow");
    await mkdir(at("images"));
    await chown(at("images"), NOBODY, NOBODY);
    const disk: DiskFile = { path: at("images/disk.raw"), kind: "file", format: "raw" };
    await symlink(at("shadow"), disk.path);
    await expect(open(disk)).rejects.toMatchObject({
      code: "E_IMAGE_CHAIN",
      details: { folder: at("images") },
    });
    // The same with a folder of root's in which others may write.
    await chown(at("images"), 0, 0);
    await chmod(at("images"), 0o777);
    await expect(open(disk)).rejects.toMatchObject({ code: "E_IMAGE_CHAIN" });
    await chmod(at("images"), 0o755);
    const server = await serve(await open(disk));
    expect(await bytesOf(server, 0)).toEqual([0x5e]);
  });

  it("take a source called like an option or an address for a file, and don't wait at a pipe", async () => {
    const before = process.cwd();
    process.chdir(folder);
    try {
      for (const name of ["--help", "json:{}", "nbd:localhost:1", "-f", "a,b=c"]) {
        await writeFile(name, Buffer.alloc(MiB, 0x61));
        const disk = await open({ path: name, kind: "file", format: "raw" });
        expect(disk.size).toBe(MiB);
        expect(await bytesOf(await serve(disk), 0)).toEqual([0x61]);
      }
    } finally {
      process.chdir(before);
    }
    await execa("mkfifo", ["-m", "666", at("pipe")]);
    await expect(open({ ...qcow2("pipe") })).rejects.toMatchObject({ code: "E_DISK_UNFIT" });
    await truncate(at("a,b=c"), 0);
    expect(await readdir(folder)).toContain("pipe");
  });
});
