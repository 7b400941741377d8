/** A merge in Ceph whose process has lost the lease without knowing: the point is as it was before. */
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { isPointId } from "../../../src/backup/repository/manifest.js";
import { mergeState, withImagesAside } from "../../../src/backup/repository/merged-manifest.js";
import type { Bucket } from "../../../src/backup/s3/bucket.js";
import { writeInS3 } from "../../../src/backup/storage/s3-writing.js";
import type { StoredMerge, StoreWriting } from "../../../src/backup/storage/stored-writing.js";
import { describeWith } from "../../support/tools.js";
import { TwoWriters } from "../../support/two-writers.js";

const MIB = 1024 * 1024;
const ID = "20261129T220000.000Z";
const ALL = { conditionalCreate: true, conditionalReplace: true };
const BYTES = { virtualSize: MIB, dirtyBytes: 0, dataBytes: 0, zeroBytes: 0, storedBytes: 0 };
const DISK = {
  ...{ name: "vda", file: "vda.qcow2", format: "qcow2", mode: "full", parent: null, clusterSize: 65_536 },
  ...{ ...BYTES, exportName: "", bitmap: null, map: null, digests: null },
};
const POINT = {
  ...{ format: "nbdpull-point", version: 1, id: ID, domain: { name: "vm", uuid: null }, level: "full" },
  ...{ checkpoint: null, createdAt: "2026-11-29T22:00:00.000Z", tool: "test", disks: [DISK] },
};

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "whoever merges points in an object store", () => {
  let writers: TwoWriters;
  const begun: StoreWriting[] = [];
  let prefix = "";

  beforeAll(async () => {
    writers = await TwoWriters.start();
  });
  afterAll(async () => {
    await writers?.[Symbol.asyncDispose]();
  });
  afterEach(async () => {
    writers.line.fault = () => undefined;
    for (const writing of begun.splice(0)) await writing.release();
  });

  async function write(bucket: Bucket): Promise<StoreWriting> {
    const points = { manifest: "point.json", isPoint: isPointId, mergeState, onChange: () => undefined };
    const place = { bucket, prefix, path: "s3://backups/vm", ...points };
    const writing = await writeInS3(place, { abilities: ALL, of: "vm" });
    begun.push(writing);
    return writing;
  }

  /** As after a minute in which the first one was suspended. */
  async function takeOver(): Promise<void> {
    await writers.other.remove([`${prefix}.lease`]);
    await (await write(writers.other)).clearLeftovers();
  }

  async function newImage(): Promise<StoredMerge> {
    for (const [name, content] of Object.entries({
      "vda.qcow2": "old",
      "point.json": JSON.stringify(POINT),
    })) {
      await writers.other.put(`${prefix}${ID}/${name}`, Buffer.from(content));
    }
    const merge = await (await write(writers.mine)).merge(ID);
    const file = await merge.replace("vda.qcow2", { headBytes: 5 * MIB, ranges: [], tailPartBytes: 5 * MIB });
    await file.write(Buffer.from("new"), 0);
    await file.finish({ sync: true });
    return merge;
  }

  const commit = (merge: StoredMerge, prove = async (): Promise<void> => undefined): Promise<unknown> =>
    merge.commit({
      aside: (text) => withImagesAside(text, new Map([["vda.qcow2", merge.nameOf("vda.qcow2")]])),
      ...{ merged: JSON.stringify({ ...POINT, tool: "merged" }), stale: [], refuse: () => undefined, prove },
    });

  async function assertAsBefore(): Promise<void> {
    const { other } = writers;
    const keys: string[] = [];
    for await (const { key } of other.list(prefix)) keys.push(key.slice(prefix.length));
    expect(keys.filter((key) => key !== ".lease")).toEqual([`${ID}/point.json`, `${ID}/vda.qcow2`]);
    for await (const { key } of other.pendingUploads(prefix)) expect(key).toBe("no upload");
    expect((await other.get(`${prefix}${ID}/vda.qcow2`, MIB))?.bytes.toString()).toBe("old");
    const manifest = (await other.get(`${prefix}${ID}/point.json`, MIB))?.bytes.toString() ?? "";
    expect(JSON.parse(manifest)).toEqual({ ...POINT, revision: expect.any(String) });
  }

  const lost = { code: "E_LEASE_LOST" };

  it("puts nothing in place when the next one has looked before", async () => {
    prefix = "before/vm/";
    const merge = await newImage();
    await takeOver();
    await expect(commit(merge)).rejects.toMatchObject(lost);
    await expect(merge.discard()).rejects.toMatchObject(lost);
    await assertAsBefore();
  });

  it("has what it put in place undone when it loses the lease in between", async () => {
    prefix = "between/vm/";
    const merge = await newImage();
    await expect(commit(merge, takeOver)).rejects.toMatchObject(lost);
    await assertAsBefore();
  });

  it("completes no image when the next one has looked, whenever its request arrives", async () => {
    prefix = "late/vm/";
    const merge = await newImage();
    let taken: Promise<void> | undefined;
    writers.line.fault = ({ method, url }) => {
      if (taken || method !== "POST" || !url.includes(`${ID}/vda.qcow2?`) || !url.includes("uploadId")) {
        return undefined;
      }
      // The copy that is put aside is completed before.
      taken = takeOver();
      return "hang up";
    };
    await expect(commit(merge)).rejects.toThrow();
    await taken;
    await assertAsBefore();
  });
});
