/** What scripts rely on: exit codes, output streams, and that nothing is left behind. */
import { cp, mkdir, open, readdir, readFile, rename, stat, symlink, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { takePoint } from "../../src/backup/take/take-point.js";
import { parseNbdUri } from "../../src/nbd/index.js";
import { listensOn, startServer, uriOf } from "../nbd/servers.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";
import { createImage, qemuImg, qemuIo, startQemuNbd } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

const CLUSTER = 64 * 1024;
const SIZE = 8 * CLUSTER;
const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
let out: string;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(2 * CLUSTER, 0x11));
  chain.show();
  out = join(chain.folder, "out");
  await mkdir(out);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const at = (name: string): string => join(out, name);
const leftBehind = async (): Promise<string[]> => (await readdir(out)).sort();
const repo = (): string => chain.repository.path;

/** Takes a full and an increment; the server keeps showing the bitmap. */
async function twoPoints(): Promise<void> {
  await chain.take();
  chain.disk.write(CLUSTER, Buffer.alloc(512, 0x22));
  await chain.take();
}

function expectError(ran: Ran, code: number, error: string): void {
  const document = ran.stdout === "" ? undefined : ran.json();
  expect({ code: ran.code, document, stderr: ran.stderr }).toMatchObject({
    code,
    document: { error: { code: error } },
    stderr: expect.stringMatching(/^(?!.*\n\s+at )/s),
  });
}

describe("an existing image", () => {
  it("is not replaced by an increment based on itself, by whatever path", async () => {
    await twoPoints();
    expect((await nbdpull("pull", chain.uri, at("x.qcow2"))).code).toBe(0);
    const before = await readFile(at("x.qcow2"));
    await symlink(out, join(chain.folder, "same"));
    await symlink("x.qcow2", at("link.qcow2"));
    for (const backing of [
      at("x.qcow2"),
      join(out, "..", "out", "x.qcow2"),
      join(chain.folder, "same", "x.qcow2"),
      at("link.qcow2"),
    ]) {
      const ran = await nbdpull(
        "pull",
        chain.uri,
        at("x.qcow2"),
        "--bitmap",
        "since",
        "--backing",
        backing,
        "--force",
        "--json",
      );
      expectError(ran, 2, "E_BACKING");
    }
    expect((await readFile(at("x.qcow2"))).equals(before)).toBe(true);
    expect(await leftBehind()).toEqual(["link.qcow2", "x.qcow2"]);
  });

  it("is replaced with --force only if it is a plain file", async () => {
    await mkdir(at("folder"));
    await writeFile(at("plain"), "precious");
    await symlink("plain", at("link"));
    await symlink("nowhere", at("broken"));
    await execa("mkfifo", [at("fifo")]);
    if (process.getuid?.() === 0) await execa("mknod", [at("device"), "c", "1", "3"]);
    const before = await leftBehind();
    for (const name of before.filter((entry) => entry !== "plain")) {
      expectError(await nbdpull("pull", chain.uri, at(name), "--force", "--json"), 2, "E_EXISTS");
    }
    expect(await leftBehind()).toEqual(before);
    expect(await readFile(at("plain"), "utf8")).toBe("precious");
    expect((await nbdpull("pull", chain.uri, at("plain"), "--force")).code).toBe(0);
    expect((await stat(at("plain"))).size).toBe(SIZE);
  });

  it("is not replaced by restore either if it is a link, a pipe or not the folder that the path asks for", async () => {
    await twoPoints();
    await writeFile(at("plain"), "precious");
    await symlink("plain", at("link"));
    await execa("mkfifo", [at("fifo")]);
    // A path that ends in a slash means a folder; a file of that name must be refused at the beginning.
    for (const name of ["link", "fifo", "plain/"]) {
      const ran = await nbdpull("restore", repo(), "--disk", "vda", "--to", at(name), "--force", "--json");
      expect([name, ran.code]).toEqual([name, 2]);
    }
    expect(await readFile(at("plain"), "utf8")).toBe("precious");
    expect((await nbdpull("restore", repo(), "--disk", "vda", "--to", `${at("new")}/`)).code).toBe(0);
    expect(await readdir(at("new"))).toEqual(["vda.raw"]);
  });
});

describe("a restore of several disks", () => {
  it("publishes none of them if one is damaged", async () => {
    const disk = { address: parseNbdUri(chain.uri), increment: undefined };
    const { folder } = await takePoint({
      repository: chain.repository,
      domain: { name: DOMAIN, uuid: null },
      disks: ["vda", "vdb", "vdc"].map((name) => ({ name, ...disk })),
      checkpoint: null,
      format: "qcow2",
      digests: "xxh64",
      sync: false,
      tool: "test",
      connect: {},
      confirm: async () => undefined,
    });
    const file = await open(join(folder, "vdc.qcow2"), "r+");
    await file.write(Buffer.from([0]), 0, 1, CLUSTER + 99);
    await file.close();
    expectError(await nbdpull("restore", repo(), "--to", out, "--json"), 3, "E_DAMAGED");
    expect(await leftBehind()).toEqual([]);
    await writeFile(at("vda.raw"), "precious");
    expect((await nbdpull("restore", repo(), "--to", out, "--force")).code).toBe(3);
    expect(await leftBehind()).toEqual(["vda.raw"]);
    expect(await readFile(at("vda.raw"), "utf8")).toBe("precious");
    const sound = await nbdpull(
      "restore",
      repo(),
      "--disk",
      "vda",
      "--disk",
      "vdb",
      "--to",
      join(out, "sound"),
    );
    expect(sound.code).toBe(0);
    expect(await readdir(join(out, "sound"))).toEqual(["vda.raw", "vdb.raw"]);
  });
});

describe("standard error", () => {
  it("has nothing that nobody asked for, whatever the version of Node", async () => {
    const ran = await nbdpull("--version");
    expect([ran.code, ran.stderr]).toEqual([0, ""]);
    expect((await nbdpull("pull", chain.uri, at("x.raw"), "--quiet")).stderr).toBe("");
  });
});

describe("a reader that goes away", () => {
  async function withClosed(stream: "stdout" | "stderr", ...args: string[]): Promise<number | undefined> {
    const program = join(import.meta.dirname, "../../dist/bin/nbdpull.js");
    const child = execa(process.execPath, [program, ...args], { reject: false });
    child[stream].destroy();
    const { exitCode, stderr } = await child;
    expect(stderr ?? "").not.toMatch(/\n\s+at |Unhandled/);
    return exitCode;
  }

  it.each(["stdout", "stderr"] as const)("does not hinder a pull or its cleanup: %s", async (stream) => {
    expect(await withClosed(stream, "pull", chain.uri, at("x.raw"), "--json")).toBe(0);
    expect(await withClosed(stream, "pull", chain.uri, at("x.raw"), "--json")).toBe(2);
    expect(await leftBehind()).toEqual(["x.raw"]);
  });

  it.each(["stdout", "stderr"] as const)(
    "does not hinder attach, whose warning does not crash it: %s",
    async (stream) => {
      const args = [
        "--to",
        join(out, "repo"),
        "--create",
        "--domain",
        DOMAIN,
        "--xml",
        await chain.jobXml("vda"),
      ];
      expect(await withClosed(stream, "attach", ...args)).toBe(0);
      expect((await readdir(join(out, "repo", DOMAIN))).filter((name) => name.startsWith("."))).toEqual([]);
      expect(await withClosed(stream, "points", join(out, "repo"))).toBe(0);
    },
  );
});

describe("a mistake in the command", () => {
  it("is reported on standard output with --json", async () => {
    for (const args of [
      ["pull"],
      ["pull", "--no-such-flag"],
      ["attach"],
      ["pull", chain.uri, at("x"), "--in-flight", "x"],
    ]) {
      const ran = await nbdpull(...args, "--json");
      expect([args, ran.code, ran.stdout === "" ? undefined : ran.json()]).toMatchObject([
        args,
        2,
        { error: { message: expect.any(String) } },
      ]);
    }
    expect(await leftBehind()).toEqual([]);
  });

  it.each([
    ["--in-flight", "1T"],
    ["--request-size", "100G"],
  ])("may be a size that exceeds any memory: %s %s", async (flag, size) => {
    const ran = await nbdpull("pull", chain.uri, at("x.raw"), flag, size);
    expect(ran.code).toBe(2);
    expect(ran.stderr).toContain(flag);
    expect(await leftBehind()).toEqual([]);
  });

  it.each([
    ["E_REMOTE", ["--server", "tcp:0.0.0.0:2000"]],
    ["E_REMOTE", ["--server", "tcp:[2001:db8::1]:2000"]],
    ["E_SERVER", ["--tls"]],
    ["E_SERVER", ["--server", "unix", "--insecure"]],
    ["E_SERVER", ["--host-override", "hv1"]],
    ["E_SERVER", ["--server", "tcp", "--tls-psk-file", "keys.psk"]],
  ])("may be a server open to everybody, or TLS that it can't have: %s %j", async (code, flags) => {
    expectError(await nbdpull("backup", DOMAIN, "--to", repo(), ...flags, "--json"), 2, code);
    expect(await leftBehind()).toEqual([]);
  });

  it("may be a file in place of a repository", async () => {
    const file = at("file");
    await writeFile(file, "");
    for (const args of [["points"], ["verify"], ["restore", "--to", at("x")]]) {
      const [command = "", ...rest] = args;
      expectError(await nbdpull(command, file, ...rest, "--json"), 4, "E_NO_REPOSITORY");
    }
    const ran = await nbdpull("attach", "--to", file, "--domain", DOMAIN, "--xml", await chain.jobXml("vda"));
    expect(ran.code).toBe(2);
    expect(ran.stderr).toContain(file);
    expect(await leftBehind()).toEqual(["file"]);
  });

  it("may be a domain name that can't be a folder's name, and `points` says where its points are", async () => {
    const xml = await chain.jobXml("vda");
    for (const name of ["nbdpull.json", "x".repeat(300), "a/../../b", ".."]) {
      const taken = await nbdpull("attach", "--to", repo(), "--domain", name, "--xml", xml, "--json");
      expect([taken.code, taken.stderr]).toEqual([0, expect.any(String)]);
      const listed = await nbdpull("points", repo(), name, "--json");
      const [point] = listed.json() as { domain: string; folder: string }[];
      expect(point?.domain).toBe(name);
      const folder = relative(repo(), dirname(point?.folder ?? ""));
      expect(folder).toMatch(/^[^/]*~[0-9a-f]{16}$/);
      expect((await nbdpull("points", repo(), folder)).stdout).toContain(`${folder} (`);
      expect(await readdir(join(repo(), folder))).toHaveLength(1);
    }
    expect((await nbdpull("verify", repo())).code).toBe(0);
    expectError(
      await nbdpull("attach", "--to", repo(), "--domain", "", "--xml", xml, "--json"),
      2,
      "E_DOMAIN_NAME",
    );
  });

  it("may be an image in a missing folder", async () => {
    const ran = await nbdpull("pull", chain.uri, at("missing/x.raw"));
    expect(ran.code).toBe(2);
    expect(ran.stderr).toContain(at("missing"));
    expect(ran.stderr).not.toContain("partial");
    expect(await leftBehind()).toEqual([]);
  });

  it("may be a time that is not ISO 8601", async () => {
    await twoPoints();
    const ran = await nbdpull("restore", repo(), "--to", at("x"), "--at", "web 2027", "--json");
    expectError(ran, 2, "E_BAD_POINT");
    expect(await leftBehind()).toEqual([]);
  });
});

describeWith(["nbdkit"], "an export of 100 TiB", () => {
  it("leaves nothing if the file system can't store files of that size", async (context) => {
    const probe = await open(at("probe"), "w");
    const refused = await probe.truncate(100 * 1024 ** 4).then(
      () => undefined,
      (error: NodeJS.ErrnoException) => error.code,
    );
    await probe.close();
    await rename(at("probe"), join(chain.folder, "probe"));
    if (refused !== "EFBIG") context.skip(`the file system answers ${refused ?? "yes"}`);
    const socket = join(chain.folder, "nbdkit.sock");
    await using _ = await startServer("nbdkit", ["-f", "-U", socket, "memory", "100T"], () =>
      listensOn(socket),
    );
    const ran = await nbdpull("pull", uriOf(socket, ""), at("x.raw"));
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(/file too large|EFBIG/i);
    expect(await leftBehind()).toEqual([]);
  });
});

describeWith(["qemu-img", "qemu-io", "qemu-nbd"], "an increment", () => {
  it("finds its backing image relative to the folder that it really is in", async () => {
    const base = at("base.qcow2");
    await createImage(base, { size: 4 * 1024 ** 2 });
    await qemuIo(base, "qcow2", "write -P 1 0 1M");
    await cp(base, at("disk.qcow2"));
    await qemuImg("bitmap", "--add", at("disk.qcow2"), "b0");
    await qemuIo(at("disk.qcow2"), "qcow2", "write -P 2 64k 64k");
    await mkdir(join(out, "deep", "below"), { recursive: true });
    const link = join(chain.folder, "link");
    await symlink(join(out, "deep", "below"), link);
    await using server = await startQemuNbd({ image: at("disk.qcow2"), format: "qcow2", bitmap: "b0" });
    const ran = await nbdpull(
      "pull",
      server.uri,
      join(link, "inc.qcow2"),
      "--bitmap",
      "b0",
      "--backing",
      base,
    );
    expect([ran.code, ran.stderr]).toEqual([0, ""]);
    const image = join(out, "deep", "below", "inc.qcow2");
    await qemuImg("compare", "-f", "qcow2", "-F", "qcow2", image, at("disk.qcow2"));
    await qemuImg("compare", "-f", "qcow2", "-F", "qcow2", join(link, "inc.qcow2"), at("disk.qcow2"));
  });

  it("switches to finer clusters late, repeatedly on one connection", async () => {
    const disk = at("disk.qcow2");
    const size = 32 * 1024 ** 2;
    await createImage(disk, { size });
    await qemuImg("bitmap", "--add", "-g", "512", disk, "b0");
    // The fine granularity shows only far behind the first requests.
    await qemuIo(disk, "qcow2", "write -P 1 0 24M", "write -P 2 28M 512");
    await using server = await startQemuNbd({ image: disk, format: "qcow2", bitmap: "b0" });
    for (let i = 0; i < 5; i += 1) {
      const ran = await nbdpull(
        "pull",
        server.uri,
        at("inc.qcow2"),
        "--bitmap",
        "b0",
        "--connections",
        "1",
        "--no-fsync",
        "--force",
        "--json",
      );
      expect([ran.code, ran.stderr]).toEqual([0, ""]);
      expect(ran.json()).toMatchObject({ dirtyBytes: 24 * 1024 ** 2 + 512, connections: 1 });
      expect(JSON.parse(await qemuImg("info", "--output=json", at("inc.qcow2")))).toMatchObject({
        "cluster-size": 16_384,
      });
    }
    await qemuImg("compare", "-f", "qcow2", "-F", "qcow2", at("inc.qcow2"), disk);
  });
});
