/** `nbdpull mount`: the file system that is in a point, read through the kernel. */
import { mkdir, mkdtemp, open, readdir, readFile, readlink, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { Repository } from "../../src/backup/repository/repository.js";
import { takePoint } from "../../src/backup/take/take-point.js";
import { parseNbdUri } from "../../src/nbd/index.js";
import { describeWithFuse } from "../support/fuse.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, type Ran, type Running, startNbdpull } from "../support/nbdpull.js";
import { findTool, SKIP_WITHOUT_ROOT } from "../support/tools.js";

const MiB = 1024 ** 2;
const SIZE = 16 * MiB;
const NOTHING_MOUNTED = "E_NOT_MOUNTED";

let chain: MemoryChain;
let out: string;
/** What the tests read by debugfs. */
const SECRET = "the file that was lost\n".repeat(5000);

beforeAll(async () => {
  chain = await MemoryChain.start(SIZE);
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-mount-"));
  await mkdir(join(folder, "tree"));
  await writeFile(join(folder, "tree", "lost.txt"), SECRET);
  await symlink("/etc/passwd", join(folder, "tree", "link"));
  await execa(findTool("mkfs.ext4") ?? "mkfs.ext4", [
    "-q",
    "-d",
    join(folder, "tree"),
    join(folder, "image"),
    "16M",
  ]);
  chain.disk.write(0, await readFile(join(folder, "image")));
  await chain.take();
  chain.disk.write(9 * MiB, Buffer.alloc(MiB, 7));
  await chain.take();
  await rm(folder, { recursive: true });
});
afterAll(async () => {
  await chain[Symbol.asyncDispose]();
});
beforeEach(async () => {
  out = await mkdtemp(join(tmpdir(), "nbdpull mount-"));
});
afterEach(async () => {
  await nbdpull("unmount", join(out, "m"), "--force");
  await rm(out, { recursive: true });
});

const at = (): string => join(out, "m");
const repo = (): string => chain.repository.path;

/** Starts it, and waits until it has said what is mounted. */
async function mounting(...args: readonly string[]): Promise<Running> {
  const run = startNbdpull(["mount", repo(), MemoryChain.domain, at(), ...args]);
  let ended: Ran | undefined;
  void run.ended.then((ran) => {
    ended = ran;
  });
  await expect.poll(async () => ended ?? (await mounts()).length, { interval: 20 }).toBeGreaterThan(0);
  return run;
}

async function mounts(): Promise<string[]> {
  const table = await readFile("/proc/self/mountinfo", "utf8");
  // The folder's name has a blank, which the kernel writes so.
  const name = out.replaceAll(" ", "\\040");
  return table.split("\n").filter((line) => line.includes(`${name}/`));
}

async function debugfs(file: string, request: string): Promise<string> {
  const { stdout } = await execa(findTool("debugfs") ?? "debugfs", ["-R", request, file], {
    stripFinalNewline: false,
  });
  return stdout;
}

describeWithFuse("nbdpull mount", () => {
  it("shows a disk as a file, in which debugfs and the kernel find the files of the guest", async () => {
    const run = await mounting("--at", chain.points[0]?.id ?? "", "--json");
    expect(await debugfs(join(at(), "vda"), "cat lost.txt")).toBe(SECRET);
    const expected = await chain.contentOf(chain.points[0]?.id ?? "");
    expect((await readFile(join(at(), "vda"))).equals(expected)).toBe(true);
    expect(await mounts()).toEqual([expect.stringMatching(/ fuse\.nbdpull nbdpull:\S+ ro,/)]);
    await expect(open(join(at(), "vda"), "r+")).rejects.toMatchObject({ code: "EROFS" });
    // Ended by the tool that everybody knows, it takes away what it made.
    await execa("umount", [join(at(), "vda")]);
    const ran = await finished(run);
    expect([ran.code, ran.json()]).toEqual([
      0,
      expect.objectContaining({
        version: 1,
        domain: MemoryChain.domain,
        point: chain.points[0]?.id,
        disks: [expect.objectContaining({ disk: "vda", path: join(at(), "vda"), virtualSize: SIZE })],
      }),
    ]);
    expect(await readdir(out)).toEqual([]);
  });

  it("shows all disks of a point, or those that are named, and ends all with one unmount", async () => {
    await using two = await MemoryChain.start(4 * MiB);
    two.disk.write(0, Buffer.alloc(MiB, 1));
    two.show();
    await takePoint({
      repository: await Repository.open(two.repository.path),
      domain: { name: "guest", uuid: null },
      disks: ["vda", "vdb"].map((name) => ({ name, address: parseNbdUri(two.uri), increment: undefined })),
      checkpoint: null,
      format: "qcow2",
      digests: "xxh64",
      sync: false,
      tool: "test",
      connect: {},
      confirm: async () => undefined,
    });
    for (const [args, names] of [
      [[], ["vda", "vdb"]],
      [["--disk", "vdb"], ["vdb"]],
    ] as const) {
      const run = startNbdpull(["mount", two.repository.path, "guest", at(), ...args]);
      await expect.poll(async () => (await mounts()).length).toBe(names.length);
      for (const name of names) {
        expect((await readFile(join(at(), name))).equals(Buffer.from(two.disk.read(0, 4 * MiB)))).toBe(true);
      }
      const unmounted = await nbdpull("unmount", at(), "--json");
      expect([unmounted.code, unmounted.json()]).toEqual([
        0,
        { version: 1, unmounted: names.map((name) => join(at(), name)) },
      ]);
      const ran = await finished(run);
      expect([ran.code, ran.stdout.split("\n")]).toEqual([0, names.map((name) => join(at(), name))]);
      expect(await readdir(out)).toEqual([]);
    }
  });

  it("reads damage as EIO, names it, gives all else, and ends with 3", async () => {
    await using damaged = await chain.copy();
    const path = damaged.file(1);
    await using image = await open(path, "r+");
    await image.write("X", (await readFile(path)).indexOf(Buffer.alloc(512, 7)) + 100);
    const run = startNbdpull(["mount", damaged.repository.path, MemoryChain.domain, at()]);
    await expect.poll(async () => (await mounts()).length).toBe(1);
    await expect(readFile(join(at(), "vda"))).rejects.toMatchObject({ code: "EIO" });
    expect(await debugfs(join(at(), "vda"), "cat lost.txt")).toBe(SECRET);
    run.kill("SIGINT");
    const ran = await finished(run);
    expect([ran.code, ran.stderr]).toEqual([3, expect.stringMatching(/vda.*guest offset \d+/)]);
    expect(await readdir(out)).toEqual([]);
  });

  it("leaves no mount when it is killed, and the next run takes its place", async () => {
    const killed = await mounting();
    killed.kill("SIGKILL");
    await killed.ended;
    await expect.poll(mounts).toEqual([]);
    expect((await readdir(at())).sort()).toEqual([".nbdpull-mount.sock", "vda"]);
    const run = await mounting();
    expect(await debugfs(join(at(), "vda"), "cat lost.txt")).toBe(SECRET);
    run.kill("SIGTERM");
    expect((await finished(run)).code).toBe(0);
    // It was there before this run, empty.
    expect(await readdir(at())).toEqual([]);

    const again = await mounting();
    again.kill("SIGKILL");
    await again.ended;
    await expect.poll(mounts).toEqual([]);
    const cleared = await nbdpull("unmount", at());
    expect([cleared.code, await readdir(at())]).toEqual([0, []]);
    const nothing = await nbdpull("unmount", at());
    expect([nothing.code, nothing.stderr]).toEqual([4, expect.stringContaining(NOTHING_MOUNTED)]);
  });

  it("says so when nbdfuse is killed, and leaves no dead mount", async () => {
    const run = await mounting();
    const { stdout } = await execa("pgrep", ["--parent", String(run.pid), "--full", "nbdfuse"]);
    process.kill(Number(stdout), "SIGKILL");
    const ran = await finished(run);
    expect([ran.code, ran.stderr]).toEqual([1, expect.stringContaining("E_NBDFUSE")]);
    expect([await mounts(), await readdir(out)]).toEqual([[], []]);
  });

  it("unmounts no disk that is in use unless it is told to, and refuses a folder that is taken", async () => {
    const run = await mounting();
    {
      await using _ = await open(join(at(), "vda"));
      const busy = await nbdpull("unmount", at());
      expect([busy.code, busy.stderr]).toEqual([4, expect.stringContaining("E_MOUNT_BUSY")]);
      expect(busy.stderr).toContain(`fuser -v '${join(at(), "vda")}' tells`);
      const twice = await nbdpull("mount", repo(), MemoryChain.domain, at());
      expect([twice.code, twice.stderr]).toEqual([4, expect.stringContaining("E_MOUNTED")]);
      expect(twice.stderr).toContain(`nbdpull unmount '${at()}', or`);
      const forced = await nbdpull("unmount", join(at(), "vda"), "--force");
      expect(forced.code, forced.stderr).toBe(0);
    }
    const ended = await finished(run);
    expect(ended.code, ended.stderr).toBe(0);
    expect(await readdir(out)).toEqual([]);
  });
});

describeWithFuse("nbdpull mount --files", () => {
  it("names the package that is missing, and leaves nothing behind", async () => {
    const tools = join(out, "tools");
    await mkdir(tools);
    for (const tool of ["setpriv", "stdbuf"]) await symlink(findTool(tool) ?? "", join(tools, tool));
    const run = startNbdpull(["mount", repo(), MemoryChain.domain, at(), "--files"], {
      env: { PATH: tools },
    });
    const ran = await finished(run);
    expect([ran.code, ran.stderr]).toEqual([
      4,
      expect.stringMatching(/E_NO_GUESTFS: .*apt install guestfish/),
    ]);
    expect(await readdir(out)).toEqual(["tools"]);
  });

  // It boots a machine, and takes packages that nothing else does.
  it.runIf(process.env["NBDPULL_TEST_GUESTFS"] === "1")(
    "shows the files of the guest, lets nobody write, and leaves nothing behind, even if it is killed",
    async () => {
      const [{ id = "" } = {}] = chain.points;
      const args = ["mount", repo(), MemoryChain.domain, at(), "--files", "--at", id];
      const libguestfs = async (): Promise<string[]> =>
        (await readdir("/tmp")).filter((name) => name.startsWith("libguestfs"));
      const before = await libguestfs();
      const lost = join(at(), "files/vda/lost.txt");
      const shown = async (): Promise<Running> => {
        // Where this machine is a guest itself, its KVM may not bear a kernel that unpacks itself.
        const env = { LIBGUESTFS_BACKEND_SETTINGS: "force_tcg" };
        const run = startNbdpull([...args, "--json"], { env });
        await expect.poll(() => readFile(lost, "utf8").catch(() => ""), { timeout: 240_000 }).toBe(SECRET);
        return run;
      };
      const run = await shown();
      expect(await mounts()).toEqual([
        expect.stringMatching(/ ro,nosuid,nodev,noexec.* fuse\.nbdpull nbdpull:\S+ /),
      ]);
      await expect(open(lost, "r+")).rejects.toMatchObject({ code: "EROFS" });
      expect(await readlink(join(at(), "files/vda/link"))).toBe("/etc/passwd");
      expect((await nbdpull("unmount", at())).code).toBe(0);
      const ran = await finished(run);
      const fileSystem = { device: "/dev/sda", type: "ext4", name: "vda", path: join(at(), "files/vda") };
      expect([ran.code, ran.json()]).toEqual([
        0,
        expect.objectContaining({ version: 1, fileSystems: [fileSystem], leftOut: [] }),
      ]);
      expect(await readdir(out)).toEqual([]);

      const killed = await shown();
      killed.kill("SIGKILL");
      await killed.ended;
      // guestfish has ended by itself, and removed what it had elsewhere.
      await expect.poll(mounts).toEqual([]);
      await expect.poll(libguestfs).toEqual(before);
      expect((await readdir(at())).sort()).toEqual([".nbdpull-guestfs", ".nbdpull-mount.sock", "files"]);
      const again = await shown();
      // As systemd ends a unit: all of its processes at once.
      const { stdout: group } = await execa("pgrep", ["--parent", String(again.pid)]);
      again.kill("SIGTERM");
      process.kill(-Number(group), "SIGTERM");
      expect((await finished(again)).code).toBe(0);
      expect([await readdir(at()), await mounts(), await libguestfs()]).toEqual([[], [], before]);
    },
    600_000,
  );
});

describe("nbdpull mount", () => {
  const mount = (folder: string): Promise<Ran> => nbdpull("mount", repo(), MemoryChain.domain, folder);

  it("says what is missing without FUSE, and leaves nothing behind", async (context) => {
    if (SKIP_WITHOUT_ROOT || findTool("unshare") === undefined) return context.skip("needs root and unshare");
    const script = 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"';
    const inside = ["unshare", "--mount", "sh", "-c", script, "sh"];
    if ((await execa("unshare", ["--mount", "sh", "-c", script, "sh", "true"], { reject: false })).failed)
      return context.skip("no right to mount");
    const run = startNbdpull(["mount", repo(), MemoryChain.domain, at()], { inside });
    const ran = await finished(run);
    expect([ran.code, ran.stderr]).toEqual([4, expect.stringContaining("E_NO_FUSE")]);
    expect(await readdir(out)).toEqual([]);
  });

  it("touches no folder that has files, or that others can change", async (context) => {
    const refused = async (folder: string): Promise<void> => {
      const ran = await mount(folder);
      if (ran.stderr.includes("E_NO_FUSE")) context.skip("no /dev/fuse");
      expect([ran.code, ran.stderr]).toEqual([4, expect.stringContaining("E_MOUNT_FOLDER")]);
    };
    await mkdir(at());
    await writeFile(join(at(), "vda"), "mine");
    await refused(at());
    expect(await readFile(join(at(), "vda"), "utf8")).toBe("mine");
    await refused(join(at(), "vda"));
    await refused(join(out, "no", "such"));
    await mkdir(join(out, "open"), { mode: 0o777 });
    await execa("chmod", ["777", join(out, "open")]);
    await refused(join(out, "open"));
    expect((await readdir(out)).sort()).toEqual(["m", "open"]);
  });

  it("takes three words, or two where a setting names the repository", async () => {
    const few = await nbdpull("mount", repo(), MemoryChain.domain);
    expect([few.code, few.stderr]).toEqual([2, expect.stringContaining("mount takes REPO DOMAIN DIR")]);
    await mkdir(at());
    await writeFile(join(at(), "mine"), "");
    const run = startNbdpull(["mount", MemoryChain.domain, at()], { env: { NBDPULL_REPOSITORY: repo() } });
    expect((await finished(run)).stderr).toMatch(/E_MOUNT_FOLDER|E_NO_FUSE/);
  });
});
