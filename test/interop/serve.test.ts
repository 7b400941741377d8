/** `nbdpull serve`, with the clients that people will point at it. */
import { mkdir, mkdtemp, open, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Manifest } from "../../src/backup/manifest.js";
import { NbdClient } from "../../src/nbd/index.js";
import { freePort, listensOn, makeAuthority, uriOf } from "../nbd/servers.js";
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

/** Every half KiB says where it is. */
function content(length: number, salt = 0): Buffer {
  const bytes = Buffer.alloc(length, 0x5a);
  for (let i = 0; i < length; i += 512) bytes.writeUIntBE(1 + salt * 2 ** 24 + i / 512, i, 6);
  return bytes;
}

/** A full and two increments, with zeroes and discards in whole clusters and in parts. */
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

/** The point's bytes in a file of their own. */
async function rawOf(point: Manifest): Promise<string> {
  const path = at(`${point.id}.raw`);
  await writeFile(path, await bytesOf(point));
  return path;
}

/** Changes one byte of a point's file. */
async function flip(path: string, position: number): Promise<void> {
  await using file = await open(path, "r+");
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, position);
  await file.write(Buffer.from([(byte[0] ?? 0) ^ 0x40]), 0, 1, position);
}

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

  it("shows holes, and what kind of export it is, and serves a lone disk as the default export too", async () => {
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

  it("fails reads of a damaged cluster, says where on stderr, and gives the right bytes of all others", async () => {
    await threePoints();
    // The full copy's fifth cluster.
    await flip(chain.pathOf(pointAt(0), "vda.qcow2"), 6 * CLUSTER + 99);
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

  it("does not start where tables contradict the digests, and says so in JSON", async () => {
    await threePoints();
    const path = chain.pathOf(pointAt(1), "vda.qcow2");
    const entry = (await readFile(path)).indexOf(Buffer.from("00000000000000010000000000000001", "hex"));
    await using file = await open(path, "r+");
    await file.write(Buffer.alloc(8), 0, 8, entry);
    const ran = await nbdpull("serve", repo(), "--socket", at("nbd.sock"), "--json");
    expect([ran.code, ran.json()]).toMatchObject([3, { error: { point: pointAt(1).id, disk: "vda" } }]);
    await expect(stat(at("nbd.sock"))).rejects.toThrow(/ENOENT/);
  });

  it("prints one JSON document when it is ready, with --json", async () => {
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
      domain: "guest",
      point: pointAt(1).id,
      disks: [
        {
          disk: "vda",
          uri: expect.stringMatching(/^nbd:\/\/127\.0\.0\.1:\d+\/vda$/),
          virtualSize: SIZE,
          chain: [pointAt(1).id, pointAt(0).id],
          proven: true,
        },
      ],
    });
    expect((await server.stop("SIGHUP")).stdout).toBe(server.ready.trimEnd());
  });

  it("says that it cannot prove what has no digests", async () => {
    await threePoints({ digests: undefined });
    const server = await startServing(repo(), "--socket", at("nbd.sock"), "--strict");
    await qemuImg("compare", "-f", "raw", "-F", "raw", server.uris[0] ?? "", await rawOf(pointAt(-1)));
    expect(await server.stop()).toMatchObject({
      code: 5,
      stderr: expect.stringMatching(/warning: vda.*unproven/),
    });
  });
});

/** Sector that the boot program reads its message from, in another cluster than its own. */
const MESSAGE_LBA = (7 * CLUSTER) / 512 + 3;

/**
 * A boot sector for a PC's BIOS: reads a sector by the address packet at 0x7d00, writes the boot sector over it, and
 * only if both succeeded prints what it has read on QEMU's debug port and ends QEMU with 1.
 */
function bootSector(): Buffer {
  const code = Buffer.from(
    [
      "fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc", // cli; ds = es = ss = 0; sp = 0x7c00; sti; cld
      "be007d b442 cd13 721d", // si = 0x7d00; extended read of drive dl; on failure halt
      "c706047d007c b80043 cd13 7210", // from 0x7c00: extended write; on failure halt
      "be007e", // si = 0x7e00
      "ac 84c0 7404 e6e9 ebf7", // until the zero: out 0xe9, [si++]
      "b000 e6f4", // out 0xf4, 0
      "f4 ebfd", // hlt, for ever
    ]
      .join("")
      .replaceAll(" ", ""),
    "hex",
  );
  const sector = Buffer.alloc(512);
  code.copy(sector);
  // Address packet: its size, one sector, to 0000:7e00, from the disk's sector.
  sector.set([16, 0, 1, 0, 0x00, 0x7e, 0, 0], 0x100);
  sector.writeBigUInt64LE(BigInt(MESSAGE_LBA), 0x108);
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

describeWith(["qemu-system-x86_64"], "a guest that boots from nbdpull serve", () => {
  const messageOf = (text: string): Buffer =>
    Buffer.concat([Buffer.from(text), Buffer.alloc(512)]).subarray(0, 512);

  it.each([
    ["qcow2", {}],
    ["compressed qcow2", { compress: "deflate" }],
  ] as [string, Taking][])(
    "finds each point as it was, and may write to QEMU's snapshot: %s",
    async (_, form) => {
      chain.disk.write(0, bootSector());
      chain.disk.write(MESSAGE_LBA * 512, messageOf("before the change"));
      await chain.take(form);
      chain.disk.write(MESSAGE_LBA * 512, messageOf("after the change"));
      await chain.take(form);
      for (const [index, message] of ["before the change", "after the change"].entries()) {
        await using server = await startServing(
          repo(),
          "--at",
          pointAt(index).id,
          "--socket",
          at("nbd.sock"),
        );
        const ran = await execa(
          "qemu-system-x86_64",
          [
            ...["-machine", "pc,accel=tcg", "-m", "16", "-nodefaults", "-display", "none", "-no-reboot"],
            ...["-drive", `file=${server.uris[0]},format=raw,if=ide,snapshot=on`],
            ...["-chardev", `file,id=said,path=${at("said")}`],
            ...["-device", "isa-debugcon,iobase=0xe9,chardev=said"],
            ...["-device", "isa-debug-exit,iobase=0xf4,iosize=4"],
          ],
          { reject: false, timeout: 50_000, stdin: "ignore" },
        );
        expect([ran.exitCode, ran.stderr, await readFile(at("said"), "utf8")]).toEqual([1, "", message]);
        const raw = await rawOf(pointAt(index));
        await qemuImg("compare", "-f", "raw", "-F", "raw", server.uris[0] ?? "", raw);
      }
    },
  );
});

describe("the socket of nbdpull serve", () => {
  beforeEach(async () => {
    await chain.take();
  });
  const socket = (): string => at("nbd.sock");

  it.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)(
    "is this user's only, and gone after %s, with exit code 0",
    async (signal) => {
      const server = await startServing(repo(), "--socket", socket());
      expect((await stat(socket())).mode & 0o777).toBe(0o600);
      await using client = await NbdClient.connect(server.uris[0] ?? "");
      expect(client.export.size).toBe(SIZE);
      expect((await server.stop(signal)).code).toBe(0);
      await expect(stat(socket())).rejects.toThrow(/ENOENT/);
    },
  );

  it("is left by a server that was killed, and replaced by the next one", async () => {
    const killed = await startServing(repo(), "--socket", socket());
    expect((await killed.stop("SIGKILL")).signal).toBe("SIGKILL");
    expect((await stat(socket())).isSocket()).toBe(true);
    await using server = await startServing(repo(), "--socket", socket());
    await using client = await NbdClient.connect(server.uris[0] ?? "");
    expect(client.export.size).toBe(SIZE);
  });

  it("is not taken from a server that listens", async () => {
    await using server = await startServing(repo(), "--socket", socket());
    const second = await nbdpull("serve", repo(), "--socket", socket(), "--json");
    expect([second.code, second.json()]).toMatchObject([4, { error: { code: "E_ADDRESS_IN_USE" } }]);
    expect(second.stderr).toContain(`another program listens on ${socket()}`);
    await using client = await NbdClient.connect(server.uris[0] ?? "");
    expect(client.export.size).toBe(SIZE);
  });

  it("never replaces anything but a socket, needs its folder, and has a name of bounded length", async () => {
    await writeFile(socket(), "mine");
    await mkdir(at("folder"));
    const refused = [
      [socket(), "E_SOCKET"],
      [at("folder"), "E_SOCKET"],
      [at("nowhere/nbd.sock"), "E_NO_FOLDER"],
      [at("x".repeat(120)), "E_SOCKET"],
    ];
    for (const [path = "", code] of refused) {
      const ran = await nbdpull("serve", repo(), "--socket", path, "--json");
      expect([ran.code, ran.json()]).toMatchObject([2, { error: { code } }]);
    }
    expect(await readFile(socket(), "utf8")).toBe("mine");
  });

  it("is gone as well when --once has seen the last client leave", async () => {
    const server = await startServing(repo(), "--socket", socket(), "--once");
    // Whoever only looks whether somebody listens is no client.
    expect(await listensOn(socket())).toBe(true);
    {
      await using first = await NbdClient.connect(server.uris[0] ?? "", { connections: 2 });
      await using second = await NbdClient.connect(server.uris[0] ?? "");
      await second.close();
      await first.read(0, Buffer.alloc(512));
    }
    expect((await server.ended).code).toBe(0);
    await expect(stat(socket())).rejects.toThrow(/ENOENT/);
  });
});

describe("the address of nbdpull serve", () => {
  beforeEach(async () => {
    await chain.take();
  });

  it("may be a port, a host with a port, or an IPv6 address", async () => {
    for (const address of ["0", "127.0.0.1:0", "localhost:0", "[::1]:0"]) {
      await using server = await startServing(repo(), "--listen", address);
      await using client = await NbdClient.connect(server.uris[0] ?? "");
      expect(client.export.size).toBe(SIZE);
    }
  });

  it.each([
    ["nonsense", ["--listen", "a:b:c"], 2, "E_LISTEN"],
    ["a port beyond all", ["--listen", "127.0.0.1:65536"], 2, "E_LISTEN"],
    ["a host that nobody knows", ["--listen", "no.such.host.invalid:0"], 2, "E_LISTEN"],
    ["an address of another machine", ["--listen", "192.0.2.1:0", "--allow-remote"], 2, "E_LISTEN"],
    ["every interface, unasked", ["--listen", "0.0.0.0:0"], 2, "E_REMOTE"],
    ["every interface by IPv6, unasked", ["--listen", "[::]:0"], 2, "E_REMOTE"],
    ["a socket as well", ["--listen", "0", "--socket", "x.sock"], 2, "E_USAGE"],
    ["a key without certificate", ["--listen", "0", "--tls-key", "x.pem"], 2, "E_USAGE"],
    [
      "a certificate that isn't there",
      ["--listen", "0", "--tls-key", "x.pem", "--tls-cert", "x.pem"],
      2,
      "E_TLS_FILE",
    ],
    ["no such disk", ["--listen", "0", "--disk", "vdz"], 2, "E_NO_DISK"],
    ["no such point", ["--listen", "0", "--at", "1999-01-01"], 4, "E_NO_POINT"],
  ])("is refused: %s", async (_, args, code, error) => {
    const ran = await nbdpull("serve", repo(), ...args, "--json");
    expect([ran.code, ran.json()]).toMatchObject([code, { error: { code: error } }]);
  });

  it("is refused when another program has it", async () => {
    const other = createServer();
    const port = await freePort();
    await new Promise<void>((resolve) => other.listen(port, "127.0.0.1", resolve));
    const ran = await nbdpull("serve", repo(), "--listen", String(port), "--json");
    await new Promise((resolve) => other.close(resolve));
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_ADDRESS_IN_USE" } }]);
  });

  it("may be open to all with --allow-remote, which it says", async () => {
    const server = await startServing(repo(), "--listen", "0.0.0.0:0", "--allow-remote");
    await using client = await NbdClient.connect(server.uris[0] ?? "");
    expect(client.export.size).toBe(SIZE);
    expect((await server.stop()).stderr).toMatch(
      /whoever reaches 0\.0\.0\.0 can read the backup, unencrypted/,
    );
  });

  describeWith(["certtool", "nbdinfo"], "with TLS", () => {
    it("may be open to other machines, and lets in only clients with a certificate", async () => {
      const { path } = await makeAuthority(
        { path: out, [Symbol.asyncDispose]: async () => undefined },
        "ours",
      );
      const pem = (name: string): string => join(path, `${name}.pem`);
      const tls = ["--tls-cert", pem("server-cert"), "--tls-key", pem("server-key")];
      const server = await startServing(repo(), "--listen", "0.0.0.0:0", ...tls, "--tls-ca", pem("ca-cert"));
      const [uri = ""] = server.uris;
      expect(uri).toMatch(/^nbds:\/\/localhost:\d+\/vda$/);
      const { stdout } = await execa("nbdinfo", ["--size", `${uri}?tls-certificates=${path}`]);
      expect(Number(stdout)).toBe(SIZE);
      await expect(NbdClient.connect(uri.replace("nbds", "nbd"))).rejects.toMatchObject({
        code: "NBD_TLS_REQUIRED",
      });
      const ca = await readFile(pem("ca-cert"));
      await expect(NbdClient.connect(uri, { tls: { ca } })).rejects.toMatchObject({
        name: expect.stringMatching(/TlsError|ConnectionError/),
      });
      expect((await server.stop()).code).toBe(0);
    });

    it("is refused where certificate and key don't belong together", async () => {
      const { path } = await makeAuthority(
        { path: out, [Symbol.asyncDispose]: async () => undefined },
        "ours",
      );
      const tls = ["--tls-cert", join(path, "server-cert.pem"), "--tls-key", join(path, "client-key.pem")];
      const ran = await nbdpull("serve", repo(), "--listen", "0", ...tls, "--json");
      expect([ran.code, ran.json()]).toMatchObject([2, { error: { code: "E_TLS_FILE" } }]);
    });
  });
});
