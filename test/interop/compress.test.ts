/** `--compress` with real servers; `qemu-img` is the judge. */
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import * as zlib from "node:zlib";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { createImage, qemuImg, qemuIo, startQemuNbd } from "../support/qemu-nbd.js";
import { describeWith, findTool, SKIP_WITHOUT_ROOT } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const NBDPULL = join(import.meta.dirname, "..", "..", "dist", "bin", "nbdpull.js");
const hasZstd = "createZstdCompress" in zlib;

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-compress-"));
  await mkdir(join(folder, "out"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});
const at = (name: string): string => join(folder, name);
const out = (name: string): string => join(folder, "out", name);
const leftBehind = async (): Promise<string[]> => (await readdir(join(folder, "out"))).sort();

interface ImageInfo {
  readonly "format-specific": { readonly data: { readonly "compression-type": string } };
  readonly "backing-filename"?: string;
}

async function infoOf(image: string): Promise<ImageInfo> {
  return JSON.parse(await qemuImg("info", "--output=json", image)) as ImageInfo;
}

/** The clusters that `qemu-img check` counts: all stored ones, and the compressed ones. */
async function clustersOf(image: string): Promise<{ stored: number; compressed: number }> {
  const report = JSON.parse(await qemuImg("check", "--output=json", image)) as Record<string, number>;
  return { stored: report["allocated-clusters"] ?? 0, compressed: report["compressed-clusters"] ?? 0 };
}

describe("--compress where it is not possible", () => {
  const uri = (): string => `nbd+unix:///?socket=${folder}/none.sock`;

  it.each([
    ["pull to a raw name", (): string[] => ["pull", uri(), out("x.raw"), "--compress"], "E_COMPRESS_FORMAT"],
    [
      "pull --format raw",
      (): string[] => ["pull", uri(), out("x.qcow2"), "--format", "raw", "--compress=deflate"],
      "E_COMPRESS_FORMAT",
    ],
    [
      "attach --format raw",
      (): string[] => ["attach", "web", "--to", out("repo"), "--format", "raw", "--compress"],
      "E_COMPRESS_FORMAT",
    ],
    ["an unknown method", (): string[] => ["pull", uri(), out("x.qcow2"), "--compress=lzma"], "E_USAGE"],
    ["an empty method", (): string[] => ["pull", uri(), out("x.qcow2"), "--compress="], "E_USAGE"],
    ["an unknown word", (): string[] => ["pull", uri(), out("x.qcow2"), "--compress", "lzma"], "E_USAGE"],
  ])("exits with 2 before it connects: %s", async (_title, args, code) => {
    const ran = await nbdpull(...args(), "--json");
    expect([ran.code, ran.json()]).toMatchObject([2, { error: { code } }]);
    expect(await leftBehind()).toEqual([]);
  });

  it.skipIf(hasZstd)("exits with 2 and names the required version if Node has no zstd", async () => {
    for (const args of [
      ["pull", uri(), out("x.qcow2"), "--compress=zstd"],
      ["attach", "web", "--to", out("repo"), "--compress=zstd"],
    ]) {
      const ran = await nbdpull(...args, "--json");
      expect([ran.code, ran.json()]).toMatchObject([2, { error: { code: "E_NO_ZSTD" } }]);
      expect(ran.stderr).toMatch(/Node 22\.15.*deflate/);
    }
    expect(await leftBehind()).toEqual([]);
  });
});

/** Content like that of programs and documents: some of it shrinks, some doesn't. */
async function makeSource(size: number): Promise<string> {
  const image = at("disk.qcow2");
  await createImage(image, { size });
  const program = await readFile(process.execPath);
  await writeFile(at("program"), program.subarray(0, Math.min(size / 2, program.length)));
  const random = at("random");
  await execa("head", ["-c", String(2 * MiB), "/dev/urandom"], { stdout: { file: random } });
  await qemuIo(
    image,
    "qcow2",
    `write -s ${at("program")} 0 ${size / 2}`,
    `write -s ${random} ${size / 2} 2M`,
    `write -P 0 ${size / 2 + 3 * MiB} 1M`,
    `write -P 7 ${size - 512} 512`,
  );
  return image;
}

describeWith(["qemu-nbd", "qemu-img", "qemu-io"], "a compressed pull from qemu-nbd", () => {
  it.each([
    ["--compress", "zlib"],
    ["--compress=deflate", "zlib"],
    ...(hasZstd ? [["--compress=zstd", "zstd"]] : []),
  ])("matches the disk as QEMU reads it, and is smaller: %s", async (flag, type) => {
    const image = await makeSource(64 * MiB);
    await using server = await startQemuNbd({ image, format: "qcow2" });
    // The flag comes first, where commander would take the address for its value.
    const ran = await nbdpull("pull", flag ?? "", server.uri, out("x.qcow2"), "--digests", "--json");
    expect([ran.code, ran.stderr]).toEqual([0, ""]);
    const plain = await nbdpull("pull", server.uri, out("plain.qcow2"), "--digests", "--json");
    const result = ran.json() as Record<string, number>;
    const uncompressed = plain.json() as Record<string, number>;
    const same = ["mode", "virtualSize", "dirtyBytes", "dataBytes", "zeroBytes", "extents"];
    for (const name of same) expect([name, result[name]]).toEqual([name, uncompressed[name]]);
    expect(Object.keys(result)).toEqual(Object.keys(uncompressed));

    await qemuImg("compare", "-f", "qcow2", "-F", "raw", out("x.qcow2"), server.uri);
    const clusters = await clustersOf(out("x.qcow2"));
    expect(clusters.stored * 64 * KiB).toBe(result["dataBytes"]);
    expect(clusters.stored - clusters.compressed).toBeGreaterThanOrEqual(32);
    expect((await infoOf(out("x.qcow2")))["format-specific"].data["compression-type"]).toBe(type);
    const stored = result["storedBytes"] ?? 0;
    expect(stored).toBeLessThan(0.7 * (result["dataBytes"] ?? 0));
    const { size } = await stat(out("x.qcow2"));
    expect(size - stored).toBeGreaterThan(0);
    expect(size - stored).toBeLessThan(0.5 * MiB);
    const [ours, theirs] = await Promise.all(
      ["x", "plain"].map((name) => readFile(out(`${name}.qcow2.digests`))),
    );
    expect(ours?.equals(theirs as Buffer)).toBe(true);
  });

  it.each([65_536, 4096, 512])(
    "can be an increment on a compressed image, with a bitmap granularity of %i bytes",
    async (granularity) => {
      const image = await makeSource(16 * MiB);
      {
        await using server = await startQemuNbd({ image, format: "qcow2" });
        expect((await nbdpull("pull", server.uri, out("full.qcow2"), "--compress")).code).toBe(0);
      }
      await qemuImg("bitmap", "--add", "-g", String(granularity), "-f", "qcow2", image, "b0");
      await qemuIo(
        image,
        "qcow2",
        `write -P 2 ${granularity} ${granularity}`,
        `write -z ${5 * 65_536 + granularity} ${granularity}`,
        "write -P 3 1M 300k",
        "write -z 3M 256k",
        "discard 5M 128k",
        "write -P 4 16776704 512",
      );
      await using server = await startQemuNbd({ image, format: "qcow2", bitmap: "b0" });
      const backing = ["--bitmap", "b0", "--backing", out("full.qcow2")];
      const ran = await nbdpull("pull", server.uri, out("inc.qcow2"), ...backing, "--compress", "--json");
      expect([ran.code, ran.stderr]).toEqual([0, ""]);
      await qemuImg("check", "-q", out("inc.qcow2"));
      await qemuImg("compare", "-f", "qcow2", "-F", "raw", out("inc.qcow2"), server.uri);
      expect(await infoOf(out("inc.qcow2"))).toMatchObject({ "backing-filename": "full.qcow2" });
      expect((await clustersOf(out("inc.qcow2"))).compressed).toBeGreaterThan(0);
      const plain = await nbdpull("pull", server.uri, out("plain.qcow2"), ...backing, "--json");
      const { dirtyBytes, dataBytes, zeroBytes } = plain.json() as Record<string, number>;
      expect(ran.json()).toMatchObject({ mode: "incremental", dirtyBytes, dataBytes, zeroBytes });
    },
  );
});

describe("attach --compress", () => {
  const SIZE = 64 * 64 * KiB;
  let chain: MemoryChain;
  beforeEach(async () => {
    chain = await MemoryChain.start(SIZE);
    chain.disk.write(0, Buffer.alloc(SIZE / 2, "text "));
    chain.disk.startBitmap("since");
    chain.show();
  });
  afterEach(async () => {
    await chain[Symbol.asyncDispose]();
  });

  async function attached(checkpoint: string, incremental?: string, ...args: string[]): Promise<Ran> {
    const mode =
      incremental === undefined
        ? "backupmode='full'"
        : `backupmode='incremental' incremental='${incremental}' exportbitmap='since'`;
    const socket = join(chain.folder, "nbd.sock");
    const disk = `<disk name='vda' backup='yes' type='file' ${mode} exportname='vda'/>`;
    const server = `<server transport='unix' socket='${socket}'/>`;
    const xml = join(chain.folder, "job.xml");
    await writeFile(xml, `<domainbackup mode='pull'>${server}<disks>${disk}</disks></domainbackup>`);
    const which = ["--xml", xml, "--domain", "web", "--checkpoint", checkpoint];
    return await nbdpull("attach", ...args, "--to", out("repo"), ...which, "--json");
  }

  it("stores points that can be verified, restored and mixed with uncompressed ones", async () => {
    expect((await attached("c0", undefined, "--compress")).code).toBe(0);
    chain.disk.write(64 * KiB, Buffer.alloc(3 * 64 * KiB, "more "));
    const second = chain.show();
    const ran = await attached("c1", "c0", "--compress=deflate");
    expect(ran.code).toBe(0);
    const [disk] = (ran.json() as { disks: { storedBytes: number; dataBytes: number }[] }).disks;
    expect(disk?.dataBytes).toBe(3 * 64 * KiB);
    expect(disk?.storedBytes).toBeLessThan(64 * KiB);
    chain.disk.writeZeroes(2 * 64 * KiB, 64 * KiB);
    const third = chain.show();
    expect((await attached("c2", "c1")).code).toBe(0);

    expect((await nbdpull("verify", out("repo"), "--json")).code).toBe(0);
    const points = (await nbdpull("points", out("repo"), "--json")).json() as { id: string }[];
    for (const [index, content] of [
      [1, second],
      [2, third],
    ] as const) {
      const id = points[index]?.id ?? "";
      const target = at(`${index}.raw`);
      const args = ["--at", id, "--disk", "vda", "--to", target];
      expect((await nbdpull("restore", out("repo"), ...args)).code).toBe(0);
      const restored = await readFile(target);
      expect(restored.equals(Buffer.from(await content.read(0, SIZE)))).toBe(true);
      if (findTool("qemu-img")) {
        await qemuImg("convert", "-O", "raw", join(out("repo"), "web", id, "vda.qcow2"), at("stock.raw"));
        expect(restored.equals(await readFile(at("stock.raw")))).toBe(true);
      }
    }
  });
});

describeWith(["nbdkit"], "a compressed pull that fails half-way", () => {
  let servers = 0;
  /** Starts nbdkit on a Unix socket; the test ends it. */
  async function startNbdkit(...args: string[]): Promise<{ uri: string; kill(): Promise<void> }> {
    const name = `nbdkit-${servers++}.sock`;
    const socket = at(name);
    const server = execa("nbdkit", ["-f", "-U", socket, ...args], { reject: false });
    const kill = async (): Promise<void> => {
      server.kill("SIGKILL");
      await server;
    };
    await expect.poll(() => readdir(folder)).toContain(name);
    return { uri: `nbd+unix:///?socket=${socket}`, kill };
  }

  async function untilTemporary(): Promise<void> {
    await expect.poll(leftBehind).not.toEqual([]);
  }

  it("exits with 1 and leaves nothing when the server dies", async () => {
    const server = await startNbdkit("--filter=rate", "pattern", "64M", "rate=40M");
    const run = startNbdpull(["pull", server.uri, out("x.qcow2"), "--compress", "--digests"]);
    await untilTemporary();
    await sleep(200);
    await server.kill();
    const ran = await finished(run);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(/^nbdpull: .+/);
    expect(await leftBehind()).toEqual([]);
  });

  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("exits with the code for %s and leaves nothing", async (signal, code) => {
    // The server is as fast as it can be, so all buffers are in use.
    const server = await startNbdkit("random", "1G");
    const run = startNbdpull(["pull", server.uri, out("x.qcow2"), "--compress", "--digests"]);
    await untilTemporary();
    await sleep(300);
    run.kill(signal);
    const ran = await finished(run);
    await server.kill();
    expect(ran.code).toBe(code);
    expect(ran.stderr).toContain(signal);
    expect(await leftBehind()).toEqual([]);
  });

  it("leaves nothing under the final name when it is killed, and no valid image under another", async () => {
    // The rate is in bits per second; the filter lets two seconds' worth pass at once.
    const slow = await startNbdkit("--filter=rate", "random", "64M", "rate=40M");
    const run = startNbdpull(["pull", slow.uri, out("x.qcow2"), "--compress", "--digests"]);
    await untilTemporary();
    await sleep(200);
    run.kill("SIGKILL");
    expect(await run.ended).toBeUndefined();
    const left = await leftBehind();
    expect(left).not.toContain("x.qcow2");
    expect(left).not.toContain("x.qcow2.digests");
    for (const name of left.filter((name) => !name.endsWith(".digests"))) {
      const start = (await readFile(out(name))).subarray(0, 4);
      expect(start.includes(0xfb)).toBe(false);
    }
    await slow.kill();
    const server = await startNbdkit("random", "8M");
    const again = await nbdpull("pull", server.uri, out("x.qcow2"), "--compress", "--digests");
    await server.kill();
    expect(again.code).toBe(0);
    expect((await leftBehind()).filter((name) => !left.includes(name))).toEqual([
      "x.qcow2",
      "x.qcow2.digests",
    ]);
  });

  it.skipIf(SKIP_WITHOUT_ROOT)(
    "exits with 1 when the target's file system is full (needs root)",
    async () => {
      const small = at("small");
      await mkdir(small);
      await execa("mount", ["-t", "tmpfs", "-o", "size=4M", "tmpfs", small]);
      try {
        const server = await startNbdkit("random", "64M");
        const ran = await nbdpull("pull", server.uri, join(small, "x.qcow2"), "--compress", "--digests");
        expect(ran.code).toBe(1);
        expect(ran.stderr).toMatch(/no space left.*make room/);
        expect(await readdir(small)).toEqual([]);
        await server.kill();
      } finally {
        await execa("umount", [small]);
      }
    },
  );

  it.each(["for its data", "for its tables alone"])("exits with 1 when there is no room %s", async (what) => {
    const server = await startNbdkit("pattern", "8M");
    expect((await nbdpull("pull", server.uri, out("x.qcow2"), "--compress")).code).toBe(0);
    const { size } = await stat(out("x.qcow2"));
    await rm(out("x.qcow2"));
    const limit = what === "for its data" ? 100 * KiB : size - 64 * KiB;
    const args = [NBDPULL, "pull", server.uri, out("x.qcow2"), "--compress", "--json"];
    const options = { reject: false } as const;
    const ran = await execa("prlimit", [`--fsize=${limit}`, process.execPath, ...args], options);
    await server.kill();
    expect(ran.exitCode).toBe(1);
    expect(JSON.parse(ran.stdout)).toMatchObject({ error: { code: "EFBIG" } });
    expect(await leftBehind()).toEqual([]);
  });
});
