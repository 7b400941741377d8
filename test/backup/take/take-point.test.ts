import { mkdir, readdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import { takePoint } from "../../../src/backup/take/take-point.js";
import { verifyPoints } from "../../../src/backup/verify/verify.js";
import { parseNbdUri } from "../../../src/nbd/index.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { restoreDisk } from "../../support/restore-disk.js";
import { hasBytes } from "../../support/same-bytes.js";

const CLUSTER = 64 * 1024;
const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(40 * CLUSTER + 3 * 512);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const pointAt = (index: number): Manifest => {
  const point = chain.points.at(index);
  if (!point) throw new Error("no such point");
  return point;
};

async function expectExact(point: Manifest): Promise<void> {
  const targetPath = join(chain.folder, "restored");
  const { repository } = chain;
  await restoreDisk({
    repository,
    point,
    diskName: "vda",
    targetPath,
    format: "raw",
    force: true,
    sync: false,
  });
  expect(hasBytes(targetPath, await chain.contentOf(point.id))).toBe(true);
}

describe("a point", () => {
  it("is not made of disks whose names lead out of its folder", async () => {
    const disk = { address: parseNbdUri(chain.uri), increment: undefined };
    for (const names of [["../../x"], ["a/b"], [".hidden"], [""], ["vda", "vda"]]) {
      const taken = takePoint({
        repository: chain.repository,
        domain: { name: DOMAIN, uuid: null },
        disks: names.map((name) => ({ name, ...disk })),
        checkpoint: null,
        format: "raw",
        digests: undefined,
        sync: false,
        tool: "test",
        connect: {},
        confirm: async () => undefined,
      });
      await expect(taken).rejects.toMatchObject({ code: "E_DISK_NAME" });
    }
    expect(await readdir(chain.repository.path)).toEqual(["nbdpull.json"]);
  });

  it("is not committed when the job is gone, and nothing is left", async () => {
    chain.disk.write(0, Buffer.alloc(CLUSTER, 1));
    const gone = chain.take({
      confirm: async () => {
        throw new Error("the job ended");
      },
    });
    await expect(gone).rejects.toThrow("the job ended");
    expect(await readdir(chain.repository.path)).toEqual(["nbdpull.json"]);
  });

  it("is taken despite the remains of a dead run, which it removes", async () => {
    const dead = join(chain.repository.path, DOMAIN, ".20200101T000000.000Z.partial");
    await mkdir(dead, { recursive: true });
    await writeFile(join(dead, "vda.qcow2"), "half");
    await chain.take();
    expect(await readdir(join(chain.repository.path, DOMAIN))).toEqual([pointAt(0).id]);
  });

  it("gets a later ID than the newest point, even if the clock went back", async () => {
    await chain.take();
    const future = "20990101T000000.000Z";
    const folder = join(chain.repository.path, DOMAIN);
    await rename(join(folder, pointAt(0).id), join(folder, future));
    const { manifest } = await chain.take({ full: true });
    expect(manifest.id).toBe("20990101T000000.001Z");
  });

  it("does not mix formats such that stock QEMU would misread them", async () => {
    await chain.take({ format: "raw" });
    await chain.take({ format: "raw" });
    await expect(chain.take({ format: "qcow2" })).rejects.toMatchObject({ code: "E_RAW_PARENT" });
    await chain.take({ format: "raw" });
    await expectExact(pointAt(-1));
  });

  it("may be a qcow2 increment on a raw full copy", async () => {
    chain.disk.write(CLUSTER, Buffer.alloc(3 * CLUSTER, 5));
    await chain.take({ format: "raw" });
    chain.disk.write(2 * CLUSTER, Buffer.alloc(512, 6));
    await chain.take({ format: "qcow2" });
    await expectExact(pointAt(1));
    const ids = await chain.repository.pointIds(DOMAIN);
    const reports = await verifyPoints(chain.repository, DOMAIN, ids);
    expect(reports.flatMap(({ findings }) => findings)).toEqual([]);
  });
});
