/**
 * Increments whose bitmap lies: it belongs to another disk, to an older state, or has lost bits. QEMU's
 * images and bitmaps, served by qemu-nbd; `qemu-img compare` judges what is restored.
 */

import { copyFile, mkdtemp, open, rename, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { DigestAlgorithm } from "../../src/backup/digest/algorithms.js";
import { RateLimit } from "../../src/backup/pull/rate-limit.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { ProveSettings } from "../../src/backup/take/prove-disk.js";
import { type TakenPoint, takePoint } from "../../src/backup/take/take-point.js";
import { parseNbdUri } from "../../src/nbd/index.js";
import { GuestImage } from "../support/guest-image.js";
import { type QemuNbd, qemuImg } from "../support/qemu-nbd.js";
import { restoreDisk } from "../support/restore-disk.js";
import { describeWith } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const CLUSTER = 64 * KiB;
const DOMAIN = "guest";

let folder: string;
let repository: Repository;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-prove-"));
  repository = await Repository.openOrCreate(join(folder, "repo"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

interface Wanted {
  readonly parent?: Manifest;
  readonly proveBase?: ProveSettings;
  readonly digests?: DigestAlgorithm | undefined;
  readonly rateLimit?: RateLimit;
  readonly signal?: AbortSignal;
}

/** Takes a point of the disks; with a parent, an increment by each disk's bitmap. */
async function take(disks: readonly GuestImage[], wanted: Wanted = {}): Promise<TakenPoint> {
  const { parent, digests, ...settings } = wanted;
  const servers: QemuNbd[] = [];
  try {
    for (const disk of disks) servers.push(await disk.serve());
    return await takePoint({
      ...settings,
      repository,
      domain: { name: DOMAIN, uuid: null },
      disks: disks.map((disk, i) => ({
        name: disk.name,
        address: parseNbdUri(servers[i]?.uri ?? ""),
        increment: parent && { bitmap: disk.bitmap, parent },
      })),
      checkpoint: null,
      format: "qcow2",
      digests: "digests" in wanted ? digests : "sha256",
      sync: false,
      tool: "test",
      connect: {},
      confirm: async () => undefined,
    });
  } finally {
    for (const server of servers) await server.stop();
  }
}

/** Takes a full point, and begins the bitmaps of the next increment. */
async function takeFull(disks: readonly GuestImage[], wanted: Wanted = {}): Promise<Manifest> {
  const { manifest } = await take(disks, wanted);
  for (const disk of disks) await disk.mark(CLUSTER);
  return manifest;
}

/** Restores every disk of a point, and compares it with what the guest sees now. */
async function expectRestored({ manifest }: TakenPoint, disks: readonly GuestImage[]): Promise<void> {
  for (const { name, path } of disks) {
    const targetPath = join(folder, "restored.raw");
    const target = { targetPath, format: "raw", force: true, sync: false } as const;
    await restoreDisk({ repository, point: manifest, diskName: name, ...target });
    await qemuImg("compare", "-f", "raw", "-F", "qcow2", targetPath, path);
  }
}

function modesOf({ manifest }: TakenPoint): Record<string, string> {
  return Object.fromEntries(manifest.disks.map(({ name, mode }) => [name, mode]));
}

const OTHER = /^the disk is not the one that its base was taken from: guest offset \d+ is not as in point /;

/** A guest's disk with data in front, some in the middle and at the end, and holes. */
async function disk(name: string, pattern: number, size = 64 * MiB): Promise<GuestImage> {
  const image = await GuestImage.create(folder, name, size);
  const tail = size - MiB;
  await image.io(`write -P ${pattern} 0 4M`, `write -P ${pattern} 20M 3M`, `write -P ${pattern} ${tail} 1M`);
  return image;
}

describeWith(["qemu-nbd", "qemu-img", "qemu-io"], "an increment whose bitmap lies", () => {
  it("is taken in full where two disks were swapped, each with a bitmap of the same name", async () => {
    const disks = [await disk("vda", 1), await disk("sda", 2), await disk("vdc", 3)];
    const parent = await takeFull(disks);
    const [vda = "", sda = ""] = disks.map(({ path }) => path);
    await rename(vda, join(folder, "away"));
    await rename(sda, vda);
    await rename(join(folder, "away"), sda);
    for (const each of disks) await each.io("write -P 9 8M 64k");
    const taken = await take(disks, { parent });
    expect(modesOf(taken)).toEqual({ vda: "full", sda: "full", vdc: "incremental" });
    const reasons = taken.manifest.disks.map(({ reason }) => reason);
    expect(reasons).toEqual([expect.stringMatching(OTHER), expect.stringMatching(OTHER), undefined]);
    expect(taken.manifest.disks[0]).toMatchObject({ parent: null, bitmap: null });
    await expectRestored(taken, disks);
    // The next increment stands on these full disks.
    for (const each of disks) {
      await each.mark(CLUSTER);
      await each.io("write -P 10 30M 64k");
    }
    const next = await take(disks, { parent: taken.manifest });
    expect(modesOf(next)).toEqual({ vda: "incremental", sda: "incremental", vdc: "incremental" });
    await expectRestored(next, disks);
  });

  it.each<[string, (image: GuestImage, aside: { older: string; other: string }) => Promise<unknown>]>([
    ["another image was copied over it", (image, { other }) => copyFile(other, image.path)],
    ["an older copy of the image was put back", (image, { older }) => copyFile(older, image.path)],
    [
      "a tool that knows no bitmaps wrote to it",
      async (image) => {
        // Host writes behind QEMU's back, into a data cluster of the image.
        const [first] = JSON.parse(await qemuImg("map", "--output=json", "-f", "qcow2", image.path)) as {
          offset: number;
        }[];
        await using file = await open(image.path, "r+");
        await file.write(Buffer.alloc(2 * MiB, 0x77), 0, 2 * MiB, first?.offset);
      },
    ],
    [
      "the bitmap has lost bits",
      async (image) => {
        await image.io("write -P 8 1M 2M");
        await qemuImg("bitmap", "-f", "qcow2", "--clear", image.path, image.bitmap);
      },
    ],
    [
      "the disk was shrunk and has grown again",
      async (image) => {
        await image.resize(63 * MiB + 256 * KiB);
        await image.resize(64 * MiB);
      },
    ],
    [
      "the disk was shrunk by its last cluster and has grown again",
      async (image) => {
        await image.resize(64 * MiB - CLUSTER);
        await image.resize(64 * MiB);
      },
    ],
  ])("is taken in full where %s", async (_title, change) => {
    const vda = await disk("vda", 1);
    const other = await disk("vdb", 2);
    // The chain has data in two layers.
    const full = await takeFull([vda, other]);
    const older = join(folder, "older.qcow2");
    await copyFile(vda.path, older);
    await qemuImg("bitmap", "-f", "qcow2", "--add", "-g", String(CLUSTER), older, "b1");
    await vda.io("write -P 5 2M 1M", "write -P 6 40M 1M", "write -z 20M 1M");
    const { manifest: parent } = await take([vda, other], { parent: full });
    for (const each of [vda, other]) await each.mark(CLUSTER);
    await change(vda, { older, other: other.path });
    await vda.io("write -P 9 10M 64k");
    const taken = await take([vda, other], { parent });
    expect(modesOf(taken)).toEqual({ vda: "full", vdb: "incremental" });
    expect(taken.manifest.disks[0]?.reason).toMatch(OTHER);
    await expectRestored(taken, [vda, other]);
  });

  it("is found by the clusters that an earlier run chose, and by all of them", async () => {
    const vda = await disk("vda", 1);
    const parent = await takeFull([vda]);
    // One cluster of 128: a sample of 8 rarely has it.
    await vda.io("write -P 3 21M 64k");
    await qemuImg("bitmap", "-f", "qcow2", "--clear", vda.path, vda.bitmap);
    const all = await take([vda], { parent, proveBase: { amount: "all" } });
    expect(all.manifest.disks[0]?.reason).toContain(`guest offset ${21 * MiB} `);
    expect(all.proofs).toMatchObject([
      { disk: "vda", parent: parent.id, differing: 21 * MiB, seed: undefined },
    ]);
    const seeds = new Map<string, string | undefined>();
    for (let i = 0; i < 12; i += 1) {
      const { manifest, proofs } = await take([vda], { parent, proveBase: { amount: 8 } });
      seeds.set(proofs[0]?.seed ?? "", manifest.disks[0]?.reason);
    }
    expect(new Set([...seeds.values()].map((reason) => reason === undefined)).has(true)).toBe(true);
    for (const [seed, reason] of [...seeds].slice(0, 3)) {
      const again = await take([vda], { parent, proveBase: { amount: 8, seed } });
      expect(again.manifest.disks[0]?.reason).toBe(reason);
    }
  });
});

describeWith(["qemu-nbd", "qemu-img", "qemu-io"], "the proof of a base", () => {
  it("compares as many clusters as it was asked for, and none of the changed ones", async () => {
    const vda = await disk("vda", 1);
    const parent = await takeFull([vda]);
    await vda.io("write -P 2 0 4M", "write -z 20M 2M", "discard 60M 1M");
    for (const [amount, compared] of [
      [undefined, 32],
      [1024, 32],
      [5, 5],
      // 32 clusters of data, and all that was zero before and did not change.
      ["all", 32 + (64 - 4 - 3 - 1 - 1) * 16],
      ["none", undefined],
    ] as const) {
      const taken = await take([vda], { parent, proveBase: { amount } });
      expect(modesOf(taken)).toEqual({ vda: "incremental" });
      expect(taken.proofs.map((proof) => proof.compared)).toEqual(compared === undefined ? [] : [compared]);
      await expectRestored(taken, [vda]);
    }
  });

  it("says that a chain without digests can't be compared, and goes on", async () => {
    const vda = await disk("vda", 1);
    const parent = await takeFull([vda], { digests: undefined });
    const taken = await take([vda], { parent });
    expect(modesOf(taken)).toEqual({ vda: "incremental" });
    expect(taken.proofs).toMatchObject([{ compared: 0, impossible: expect.stringContaining("no digests") }]);
    // An increment with digests on it can prove what it has itself.
    await vda.mark(CLUSTER);
    await vda.io("write -P 3 1M 128k");
    const { manifest: second } = await take([vda], { parent });
    await vda.mark(CLUSTER);
    expect((await take([vda], { parent: second })).proofs).toMatchObject([{ compared: 2 }]);
    await vda.io("write -P 4 1M 64k");
    await qemuImg("bitmap", "-f", "qcow2", "--clear", vda.path, vda.bitmap);
    expect(modesOf(await take([vda], { parent: second }))).toEqual({ vda: "full" });
  });

  it("takes a full point where it is the chain's digest file that is damaged, and names it", async () => {
    const vda = await disk("vda", 1);
    const parent = await takeFull([vda]);
    const path = join(repository.pointFolder(DOMAIN, parent.id), "vda.digests");
    const file = await open(path, "r+");
    // A digest of the first record, behind its head.
    await file.write(Buffer.alloc(64 * 32, 0x55), 0, 64 * 32, 64 + 16);
    await file.close();
    const taken = await take([vda], { parent });
    expect(modesOf(taken)).toEqual({ vda: "full" });
    expect(taken.manifest.disks[0]?.reason).toMatch(/could not be restored: .*digest file/);
    await expectRestored(taken, [vda]);
  });

  it("keeps to the rate limit, and ends when it is aborted", async () => {
    const vda = await disk("vda", 1);
    const parent = await takeFull([vda]);
    const begun = performance.now();
    const rateLimit = new RateLimit(16 * MiB);
    await take([vda], { parent, proveBase: { amount: "all" }, rateLimit });
    // 8 MiB of data.
    expect(performance.now() - begun).toBeGreaterThan(300);
    const signal = AbortSignal.timeout(150);
    const slow = { parent, proveBase: { amount: "all" }, rateLimit: new RateLimit(MiB), signal } as const;
    await expect(take([vda], slow)).rejects.toMatchObject({ name: "TimeoutError" });
    expect(await repository.pointIds(DOMAIN)).toHaveLength(2);
  });
});
