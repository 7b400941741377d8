/** `nbdpull serve` with the clients that people use. */
import { mkdtemp, open, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { takePoint } from "../../src/backup/take/take-point.js";
import { listExports, NbdClient, parseNbdUri } from "../../src/nbd/index.js";
import { uriOf } from "../nbd/servers.js";
import { flipByte } from "../support/flip-byte.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { startServing } from "../support/serving.js";
import { describeWith } from "../support/tools.js";

const KiB = 1024;
const CLUSTER = 64 * KiB;
const SIZE = 40 * CLUSTER + 3 * 512;

let chain: MemoryChain;
let out: string;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  out = await mkdtemp(join(tmpdir(), "nbdpull-serve-"));
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
  await rm(out, { recursive: true });
});
const at = (name: string): string => join(out, name);
const repo = (): string => chain.repository.path;
const pointAt = (index: number): Manifest => {
  const point = chain.points.at(index);
  if (!point) throw new Error("no such point");
  return point;
};

type Taking = NonNullable<Parameters<MemoryChain["take"]>[0]>;

/** Every 512 bytes contain their position. */
function content(length: number, salt = 0): Buffer {
  const bytes = Buffer.alloc(length, 0x5a);
  for (let i = 0; i < length; i += 512) bytes.writeUIntBE(1 + salt * 2 ** 24 + i / 512, i, 6);
  return bytes;
}

/** A full and two increments, with zeroes and discards in whole and partial clusters. */
async function threePoints(options: Taking = {}): Promise<void> {
  chain.disk.write(0, content(30 * CLUSTER));
  chain.disk.write(SIZE - 512, content(512, 9));
  await chain.take(options);
  chain.disk.write(3 * CLUSTER + 512, content(1024, 1));
  chain.disk.writeZeroes(8 * CLUSTER, 3 * CLUSTER);
  await chain.take(options);
  chain.disk.discard(20 * CLUSTER, 2 * CLUSTER);
  chain.disk.write(9 * CLUSTER, content(CLUSTER, 2));
  chain.disk.writeZeroes(25 * CLUSTER + 4096, 4096);
  chain.disk.write(SIZE - 512, content(512, 3));
  await chain.take(options);
}

async function bytesOf(point: Manifest): Promise<Buffer> {
  return Buffer.from((await chain.contents.get(point.id)?.read(0, SIZE)) ?? []);
}

/** The point's bytes in a file. */
async function rawOf(point: Manifest): Promise<string> {
  const path = at(`${point.id}.raw`);
  await writeFile(path, await bytesOf(point));
  return path;
}

/** Flips one bit in a point's file. */
const forms: [string, Taking][] = [
  ["qcow2 images", {}],
  ["qcow2 images with subclusters", { granularity: 4096 }],
  ["compressed images", { compress: "deflate", granularity: 4096 }],
  ["raw images", { format: "raw", granularity: 4096 }],
];

describeWith(["qemu-img", "nbdcopy", "nbdinfo"], "nbdpull serve", () => {
  it.each(forms)("gives qemu-img, nbdcopy and restore the same bytes of every point: %s", async (_, form) => {
    await threePoints(form);
    for (const point of chain.points) {
      const raw = await rawOf(point);
      await using server = await startServing(repo(), "--at", point.id, "--socket", at("nbd.sock"));
      const [uri = ""] = server.uris;
      expect(await qemuImg("compare", "-f", "raw", "-F", "raw", uri, raw)).toMatch(/identical/);
      await qemuImg("convert", "-f", "raw", "-O", "raw", uri, at("converted.raw"));
      await execa("nbdcopy", [uri, at("copied.raw")]);
      const expected = await readFile(raw);
      expect((await readFile(at("converted.raw"))).equals(expected)).toBe(true);
      expect((await readFile(at("copied.raw"))).equals(expected)).toBe(true);
      await rm(at("copied.raw"));
      expect(await server.stop()).toMatchObject({ code: 0, stdout: uri });
    }
  });

  it("shows holes and export flags, and serves a single disk as the default export too", async () => {
    await threePoints();
    await using server = await startServing(repo(), "--socket", at("nbd.sock"));
    const { stdout } = await execa("nbdinfo", ["--map", "--json", server.uris[0] ?? ""]);
    const map = JSON.parse(stdout) as { offset: number; length: number; type: number }[];
    const zeroes = map.filter(({ type }) => type === 3).map((e) => [e.offset / CLUSTER, e.length / CLUSTER]);
    expect(zeroes).toEqual([
      [8, 1],
      [10, 1],
      [20, 2],
      [30, 10],
    ]);
    expect(map.reduce((total, { length }) => total + length, 0)).toBe(SIZE);
    for (const uri of [server.uris[0] ?? "", uriOf(at("nbd.sock"))]) {
      for (const ability of ["can multi-conn", "is readonly"]) {
        expect(
          (await execa("nbdinfo", [`--${ability.split(" ")[0]}`, ability.split(" ")[1] ?? "", uri])).exitCode,
        ).toBe(0);
      }
      const info = await execa("nbdinfo", ["--json", uri]);
      expect(JSON.parse(info.stdout)).toMatchObject({
        exports: [{ "export-size": SIZE, can_multi_conn: true, is_read_only: true }],
      });
    }
  });

  it("serves several clients at once, each over several connections", async () => {
    await threePoints({ granularity: 4096 });
    const expected = await readFile(await rawOf(pointAt(-1)));
    await using server = await startServing(repo(), "--socket", at("nbd.sock"));
    const uri = server.uris[0] ?? "";
    const copies = [1, 2, 3].map(async (n) => {
      const target = at(`copy${n}.raw`);
      await execa("nbdcopy", ["--connections=4", `--requests=${8 * n}`, uri, target]);
      return (await readFile(target)).equals(expected);
    });
    const clients = [0, 1, 2].map(async (n) => {
      await using client = await NbdClient.connect(uri);
      const bytes = Buffer.alloc(5000);
      for (let offset = n * 1000; offset + 5000 < SIZE; offset += 70_000) {
        await client.read(offset, bytes);
        if (!bytes.equals(expected.subarray(offset, offset + 5000))) return false;
      }
      return true;
    });
    expect(await Promise.all([...copies, ...clients])).toEqual([true, true, true, true, true, true]);
  });

  it("serves a disk of any size, to its last byte", async () => {
    const size = 20 * CLUSTER + 4711;
    await using odd = await MemoryChain.start(size);
    odd.disk.write(0, content(2 * CLUSTER));
    odd.disk.write(size - 1000, content(1000, 1));
    await odd.take();
    await using server = await startServing(odd.repository.path, "--socket", at("nbd.sock"));
    const uri = server.uris[0] ?? "";
    expect((await execa("nbdinfo", ["--size", uri])).stdout).toBe(String(size));
    await execa("nbdcopy", [uri, at("copied.raw")]);
    expect((await readFile(at("copied.raw"))).equals(Buffer.from(odd.disk.read(0, size)))).toBe(true);
    expect(await qemuImg("compare", "-f", "raw", "-F", "raw", uri, at("copied.raw"))).toMatch(/identical/);
  });

  it("serves each disk of a point by name, or only the requested disks", async () => {
    chain.disk.write(0, content(2 * CLUSTER));
    chain.show();
    const address = parseNbdUri(chain.uri);
    await takePoint({
      repository: chain.repository,
      domain: { name: "guest", uuid: null },
      disks: ["vda", "vdb", "sda"].map((name) => ({ name, address, increment: undefined })),
      checkpoint: null,
      format: "qcow2",
      digests: "xxh64",
      sync: false,
      tool: "test",
      connect: {},
      confirm: async () => undefined,
    });
    const names = async (...args: string[]): Promise<string[]> => {
      await using server = await startServing(repo(), "--socket", at("nbd.sock"), ...args);
      const listed = (await listExports(uriOf(at("nbd.sock")))).map(({ name }) => name);
      const printed = server.uris.map((uri) => parseNbdUri(uri));
      const transport = { kind: "unix", path: at("nbd.sock") };
      expect(printed).toEqual(listed.filter(Boolean).map((exportName) => ({ transport, exportName })));
      return listed;
    };
    expect(await names()).toEqual(["vda", "vdb", "sda"]);
    expect(await names("--disk", "vdb", "--disk", "vda", "--disk", "vdb")).toEqual(["vdb", "vda"]);
    expect(await names("--disk", "sda")).toEqual(["sda", ""]);
  });

  it("refuses writes", async () => {
    await threePoints();
    await using server = await startServing(repo(), "--socket", at("nbd.sock"));
    const write = await execa("qemu-io", ["-f", "raw", "-c", "write 0 512", server.uris[0] ?? ""], {
      reject: false,
    });
    expect(`${write.stdout}${write.stderr}`).toMatch(/read-only|not permitted|permission denied/i);
    await using client = await NbdClient.connect(server.uris[0] ?? "");
    await expect(client.write(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_READ_ONLY" });
    expect((await nbdpull("verify", repo())).code).toBe(0);
  });

  it("fails reads of a damaged cluster, reports its place on stderr, and serves all others", async () => {
    await threePoints();
    // Guest cluster 5 of the full copy.
    await flipByte(chain.pathOf(pointAt(0), "vda.qcow2"), 6 * CLUSTER + 99);
    const expected = await readFile(await rawOf(pointAt(-1)));
    const server = await startServing(repo(), "--socket", at("nbd.sock"));
    const uri = server.uris[0] ?? "";
    const copied = await execa("nbdcopy", [uri, at("x.raw")], { reject: false });
    expect([copied.exitCode, copied.stderr]).toEqual([1, expect.stringMatching(/Input\/output error/)]);
    {
      await using client = await NbdClient.connect(uri);
      const bytes = Buffer.alloc(512);
      for (let offset = 0; offset < SIZE; offset += 8192) {
        const inside = Math.floor(offset / CLUSTER) === 5;
        const read = client.read(offset, bytes);
        if (inside) await expect(read).rejects.toMatchObject({ errno: "EIO" });
        else {
          await read;
          expect(bytes.equals(expected.subarray(offset, offset + 512))).toBe(true);
        }
      }
    }
    const { code, stderr } = await server.stop();
    expect(code).toBe(3);
    const told = stderr.split("\n").filter((line) => line.startsWith("warning:"));
    expect(told).toEqual([
      expect.stringContaining(`disk vda of point ${pointAt(0).id} is damaged at guest offset ${5 * CLUSTER}`),
    ]);
  });

  it("does not start if tables contradict the digests, and reports that in JSON", async () => {
    await threePoints();
    const path = chain.pathOf(pointAt(1), "vda.qcow2");
    const entry = (await readFile(path)).indexOf(Buffer.from("00000000000000010000000000000001", "hex"));
    await using file = await open(path, "r+");
    await file.write(Buffer.alloc(8), 0, 8, entry);
    const ran = await nbdpull("serve", repo(), "--socket", at("nbd.sock"), "--json");
    expect([ran.code, ran.json()]).toMatchObject([3, { error: { point: pointAt(1).id, disk: "vda" } }]);
    await expect(stat(at("nbd.sock"))).rejects.toThrow(/ENOENT/);
  });

  it("prints one JSON document with --json when it is ready", async () => {
    await threePoints();
    await using server = await startServing(
      repo(),
      "guest",
      "--at",
      pointAt(1).id,
      "--listen",
      "0",
      "--json",
    );
    expect(JSON.parse(server.ready)).toEqual({
      version: 1,
      domain: "guest",
      uuid: null,
      point: pointAt(1).id,
      disks: [
        {
          disk: "vda",
          uri: expect.stringMatching(/^nbd:\/\/127\.0\.0\.1:\d+\/vda$/),
          virtualSize: SIZE,
          chain: [pointAt(1).id, pointAt(0).id],
          checked: true,
          proven: false,
        },
      ],
    });
    expect((await server.stop("SIGHUP")).stdout).toBe(server.ready.trimEnd());
  });

  it("warns that data without digests is unproven", async () => {
    await threePoints({ digests: undefined });
    const server = await startServing(repo(), "--socket", at("nbd.sock"), "--strict");
    await qemuImg("compare", "-f", "raw", "-F", "raw", server.uris[0] ?? "", await rawOf(pointAt(-1)));
    expect(await server.stop()).toMatchObject({
      code: 5,
      stderr: expect.stringMatching(/warning: vda.*unproven/),
    });
  });
});
