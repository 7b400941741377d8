/**
 * Exports of QEMU's snapshot-access node: the point in time at which a copy-before-write filter was inserted.
 * It is readable only where a dirty bitmap has bits; elsewhere, reads and block status fail.
 *
 *     guest      | clean | dirty |    clean    | dirty | clean |
 *     read       | error |  ok   |    error    |  ok   | error |     a read that touches an error fails
 *
 * QEMU 7 has a bug here, fixed in 8.0: a read that begins in a range that the guest has overwritten meanwhile
 * and extends past it returns the guest's new bytes. The first story contains such a place, at 40 MiB.
 */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { type TakenPoint, takePoint } from "../../src/backup/take/take-point.js";
import { NbdClient, parseNbdUri } from "../../src/nbd/index.js";
import { type Folder, listensOn, makeFolder, startServer, uriOf } from "../nbd/servers.js";
import { collect } from "../support/collect.js";
import { nbdpull } from "../support/nbdpull.js";
import { describeWithNewerSuite, newer } from "../support/newer-suite.js";
import { createImage, qemuImg, qemuIo, startQemuNbd } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const ALLOCATION = "base:allocation";
const DIRTY = "qemu:dirty-bitmap:b0";

let folder: Folder;
beforeEach(async () => {
  folder = await makeFolder();
});
afterEach(async () => {
  await folder[Symbol.asyncDispose]();
});
const at = (name: string): string => join(folder.path, name);

interface Story {
  readonly size: number;
  readonly granularity: number;
  /** qemu-io commands before the bitmap begins, after that, and while the snapshot is read. */
  readonly before: readonly string[];
  readonly since: readonly string[];
  readonly meanwhile: readonly string[];
  /** The bytes that the bitmap marks in the end. */
  readonly dirtyBytes: number;
  /** What QEMU copies at a time, if that is a cluster of the scratch image. */
  readonly block?: number;
}

const STORIES: Record<string, Story> = {
  "a first block that is clean": {
    size: 64 * MiB,
    granularity: 64 * KiB,
    before: ["write -P 1 0 32M"],
    since: [
      "write -P 2 1M 64k",
      "write -P 3 4M 4k",
      "write -z 8M 128k",
      "write -P 0 12M 64k",
      "write -P 4 40M 1M",
    ],
    meanwhile: ["write -P 9 0 64k", "write -P 9 1M 32k", "write -z 40M 512k", "discard 4M 1M"],
    dirtyBytes: 1344 * KiB,
  },
  "every other cluster": {
    size: 16 * MiB,
    granularity: 64 * KiB,
    before: ["write -P 1 0 16M"],
    since: Array.from({ length: 128 }, (_, i) => `write -P ${i + 2} ${i * 128 * KiB} 512`),
    meanwhile: ["write -P 9 3M 7M"],
    dirtyBytes: 8 * MiB,
  },
  "a bitmap of 4 KiB": {
    size: 16 * MiB,
    granularity: 4 * KiB,
    before: ["write -P 1 0 16M"],
    since: ["write -P 2 124k 4k", "write -P 3 1M 4k", "write -z 1084k 4k", "write -P 4 2044k 8k"],
    meanwhile: ["write -P 9 0 4M"],
    dirtyBytes: 20 * KiB,
  },
  "a bitmap of 512 bytes": {
    size: 4 * MiB,
    granularity: 512,
    before: ["write -P 1 0 4M"],
    since: ["write -P 2 65024 512", "write -P 3 1M 512", "write -P 4 1113600 1k"],
    meanwhile: ["write -P 9 1M 64k"],
    dirtyBytes: 2 * KiB,
  },
  "a bitmap of 1 MiB, and a size that nothing divides": {
    size: 8 * MiB + 7 * 512,
    granularity: MiB,
    before: ["write -P 1 0 8392192"],
    since: ["write -P 2 1600k 512", "write -P 3 8391680 512"],
    meanwhile: ["write -P 9 0 8392192"],
    dirtyBytes: MiB + 7 * 512,
  },
  "blocks larger than the bitmap's, none of them clean at the beginning": {
    size: 128 * MiB,
    granularity: 64 * KiB,
    block: 2 * MiB,
    before: ["write -P 1 0 80M"],
    since: Array.from({ length: 32 }, (_, i) => `write -P ${i + 2} ${2 * i}M 64k`),
    meanwhile: ["write -P 9 0 64k", "write -P 9 70M 64k", "write -P 9 4M 128k"],
    dirtyBytes: 2 * MiB,
  },
  "nothing dirty": {
    size: 8 * MiB,
    granularity: 64 * KiB,
    before: ["write -P 1 0 8M"],
    since: [],
    meanwhile: ["write -P 9 0 8M"],
    dirtyBytes: 0,
  },
  "nothing clean": {
    size: 8 * MiB,
    granularity: 64 * KiB,
    before: [],
    since: ["write -P 1 0 4M", "write -z 4M 4M"],
    meanwhile: ["write -P 9 3M 2M"],
    dirtyBytes: 8 * MiB,
  },
};

/** A disk whose guest keeps writing through the export `guest`, while `snapshot` does not change. */
async function serve(daemon: string, { size, granularity, before, since, block = 64 * KiB }: Story) {
  const disk = at("disk.qcow2");
  await createImage(disk, { size });
  if (before.length > 0) await qemuIo(disk, "qcow2", ...before);
  await qemuImg("convert", "-f", "qcow2", "-O", "qcow2", disk, at("full.qcow2"));
  await qemuImg("bitmap", "--add", "-g", String(granularity), "-f", "qcow2", disk, "b0");
  if (since.length > 0) await qemuIo(disk, "qcow2", ...since);
  await qemuImg("bitmap", "--disable", "-f", "qcow2", disk, "b0");
  await qemuImg("convert", "-f", "qcow2", "-O", "raw", disk, at("point.raw"));
  await createImage(at("scratch.qcow2"), { size, options: { cluster_size: String(block) } });

  const socket = at("nbd.sock");
  const blockdev = (options: object): string[] => ["--blockdev", JSON.stringify(options)];
  const serving = (options: object): string[] => ["--export", JSON.stringify({ type: "nbd", ...options })];
  const bitmap = { node: "disk", name: "b0" };
  const server = await startServer(
    daemon,
    [
      ...blockdev({ driver: "qcow2", "node-name": "disk", file: { driver: "file", filename: disk } }),
      ...blockdev({
        driver: "qcow2",
        "node-name": "scratch",
        file: { driver: "file", filename: at("scratch.qcow2") },
      }),
      ...blockdev({
        driver: "copy-before-write",
        "node-name": "cbw",
        file: "disk",
        target: "scratch",
        bitmap,
      }),
      ...blockdev({ driver: "snapshot-access", "node-name": "access", file: "cbw" }),
      ...["--nbd-server", `addr.type=unix,addr.path=${socket},max-connections=0`],
      ...serving({ id: "guest", "node-name": "cbw", name: "guest", writable: true }),
      ...serving({ id: "snapshot", "node-name": "access", name: "snapshot", bitmaps: [bitmap] }),
    ],
    () => listensOn(socket),
  );
  return { ...server, snapshot: uriOf(socket, "snapshot"), guest: uriOf(socket, "guest") };
}

function story(title: string): Story {
  const found = STORIES[title];
  if (found === undefined) throw new Error(`there is no ${title}`);
  return found;
}

function snapshotAccessTests(
  daemon: string,
  protocol: "structured" | "extended",
  titles: readonly string[],
): void {
  it.each(titles)("gives nbdpull exactly the dirty data, as it was: %s", async (title) => {
    const { meanwhile, dirtyBytes } = story(title);
    await using server = await serve(daemon, story(title));
    await qemuIo(server.guest, "raw", ...meanwhile);
    const backing = ["--backing", at("full.qcow2")];
    const ran = await nbdpull(
      "pull",
      server.snapshot,
      at("inc.qcow2"),
      "--bitmap",
      "b0",
      ...backing,
      "--json",
    );
    expect(ran.stderr).toBe("");
    expect(ran.json()).toMatchObject({ mode: "incremental", dirtyBytes });
    await qemuImg("check", "-q", at("inc.qcow2"));
    await qemuImg("compare", "-f", "qcow2", "-F", "raw", at("inc.qcow2"), at("point.raw"));
  });

  it("fails reads of clean bytes, and the connection survives", async () => {
    await using server = await serve(daemon, story("a first block that is clean"));
    await using client = await NbdClient.connect(server.snapshot, { metaContexts: [ALLOCATION, DIRTY] });
    expect(client.export.protocol).toBe(protocol);
    const target = Buffer.alloc(64 * KiB);
    await client.read(MiB, target);
    expect(target.equals(Buffer.alloc(64 * KiB, 2))).toBe(true);
    const failure = { code: "NBD_REQUEST_FAILED", errno: "EINVAL" };
    await expect(client.read(MiB, Buffer.alloc(64 * KiB + 1))).rejects.toMatchObject(failure);
    await expect(client.read(MiB - 1, target)).rejects.toMatchObject(failure);
    // QEMU still sends the chunk for the other context, after the request is over.
    for (let i = 0; i < 20; i++) {
      await expect(collect(client.blockStatus({ length: MiB }))).rejects.toMatchObject(failure);
    }
    const [batch] = await collect(client.blockStatus({ offset: MiB, length: 64 * KiB }));
    expect(batch?.contexts.get(DIRTY)).toEqual([{ offset: MiB, length: 64 * KiB, flags: 1 }]);
    expect(client.connections).toBe(1);
  });
}

const DAEMON = "qemu-storage-daemon";

describeWith(["qemu-img", "qemu-io", DAEMON], "snapshot-access", () => {
  snapshotAccessTests(DAEMON, "structured", Object.keys(STORIES));

  it("gives nbdpull a raw increment, by large requests over several connections", async () => {
    await using server = await serve(DAEMON, story("every other cluster"));
    const options = ["--request-size", "8M", "--connections", "3", "--json"];
    const ran = await nbdpull("pull", server.snapshot, at("inc.raw"), "--bitmap", "b0", ...options);
    expect(ran.stderr).toBe("");
    const map = JSON.parse(await readFile(at("inc.raw.map"), "utf8")) as { offset: number; length: number }[];
    const rebuilt = Buffer.alloc(16 * MiB, 1);
    const increment = await readFile(at("inc.raw"));
    for (const { offset, length } of map) increment.copy(rebuilt, offset, offset, offset + length);
    expect(rebuilt.equals(await readFile(at("point.raw")))).toBe(true);
  });

  it("gives a restore point its increment, even if its first bytes are clean and unreadable", async () => {
    const wanted = story("a first block that is clean");
    await using server = await serve(DAEMON, wanted);
    await using base = await startQemuNbd({ image: at("full.qcow2"), format: "qcow2" });
    const repository = await Repository.openOrCreate(at("repo"));
    const take = async (uri: string, parent?: Manifest): Promise<TakenPoint> =>
      await takePoint({
        repository,
        domain: { name: "guest", uuid: null },
        disks: [{ name: "vda", address: parseNbdUri(uri), increment: parent && { bitmap: "b0", parent } }],
        checkpoint: null,
        format: "qcow2",
        digests: "xxh64",
        sync: false,
        tool: "test",
        connect: {},
        confirm: async () => undefined,
      });
    const { manifest } = await take(base.uri);
    const { folder: point, manifest: increment } = await take(server.snapshot, manifest);
    expect(increment.disks).toMatchObject([{ mode: "incremental", dirtyBytes: wanted.dirtyBytes }]);
    await qemuImg("compare", "-f", "qcow2", "-F", "raw", join(point, "vda.qcow2"), at("point.raw"));
  });

  it("refuses a full copy, and nothing is left of it", async () => {
    await using server = await serve(DAEMON, story("a first block that is clean"));
    const ran = await nbdpull("pull", server.snapshot, at("full-copy.raw"));
    expect(ran.code).toBe(1);
    expect(ran.stderr).toContain("EINVAL");
    await expect(readFile(at("full-copy.raw"))).rejects.toMatchObject({ code: "ENOENT" });
  });
});

// The same bytes are readable, but the protocol and the server's behaviour differ.
describeWithNewerSuite("snapshot-access of QEMU 10", () => {
  snapshotAccessTests(newer(DAEMON), "extended", [
    "a first block that is clean",
    "every other cluster",
    "nothing clean",
  ]);
});
