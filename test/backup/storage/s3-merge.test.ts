/** A merge in Ceph whose process has lost the lease without knowing: the point is as it was before. */
import { randomBytes } from "node:crypto";
import { afterEach, expect, it } from "vitest";
import { isPointId } from "../../../src/backup/repository/manifest.js";
import { mergeState, withImagesAside } from "../../../src/backup/repository/merged-manifest.js";
import type { Bucket } from "../../../src/backup/s3/bucket.js";
import { copyObject } from "../../../src/backup/storage/copy-object.js";
import { writeInS3 } from "../../../src/backup/storage/s3-writing.js";
import type { StoredMerge, StoreWriting } from "../../../src/backup/storage/stored-writing.js";
import { describeWith } from "../../support/tools.js";
import { type TwoWriters, withTwoWriters } from "../../support/two-writers.js";

const MIB = 1024 * 1024;
const OLD = Buffer.from("old");
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

  withTwoWriters((started) => {
    writers = started;
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
  async function takeOver(bucket = writers.other): Promise<void> {
    await writers.other.remove([`${prefix}.lease`]);
    await (await write(bucket)).clearLeftovers();
  }

  async function newImage(old = OLD): Promise<StoredMerge> {
    await writers.other.put(`${prefix}${ID}/vda.qcow2`, old);
    await writers.other.put(`${prefix}${ID}/point.json`, Buffer.from(JSON.stringify(POINT)));
    const merge = await (await write(writers.mine)).merge(ID);
    const file = await merge.replace("vda.qcow2", { headBytes: 5 * MIB, ranges: [], tailPartBytes: 5 * MIB });
    await file.write(Buffer.from("new"), 0);
    await file.finish({ sync: true });
    return merge;
  }

  const commit = (merge: StoredMerge, prove = async (): Promise<void> => undefined): Promise<unknown> =>
    merge.commit({
      aside: (text) => withImagesAside(text, new Map([["vda.qcow2", merge.nameOf("vda.qcow2")]])),
      merged: () => JSON.stringify({ ...POINT, tool: "merged" }),
      ...{ stale: [], refuse: () => undefined, prove },
    });

  async function names(): Promise<string[]> {
    const keys: string[] = [];
    for await (const { key } of writers.other.list(prefix)) keys.push(key.slice(prefix.length));
    return keys.filter((key) => key !== ".lease");
  }

  async function assertAsBefore(old = OLD): Promise<void> {
    const { other } = writers;
    expect(await names()).toEqual([`${ID}/point.json`, `${ID}/vda.qcow2`]);
    for await (const { key } of other.pendingUploads(prefix)) expect(key).toBe("no upload");
    expect((await other.get(`${prefix}${ID}/vda.qcow2`, old.length))?.bytes.equals(old)).toBe(true);
    const manifest = (await other.get(`${prefix}${ID}/point.json`, MIB))?.bytes.toString() ?? "";
    expect(JSON.parse(manifest)).toEqual({ ...POINT, revision: expect.any(String) });
  }

  const lost = { code: "E_LEASE_LOST" };

  it("changes nothing, and leaves nothing, where a manifest can't be changed", async () => {
    prefix = "deep/vm/";
    const merge = await newImage();
    const failing = (): never => {
      throw new RangeError("too deep");
    };
    const others = { stale: [], prove: async () => undefined, refuse: () => undefined };
    await expect(merge.commit({ ...others, aside: (text) => text, merged: failing })).rejects.toThrow("deep");
    expect(await names()).toEqual([`.${ID}.partial`, `${ID}/point.json`, `${ID}/vda.qcow2`]);
    await merge.discard();
    await assertAsBefore();
    const deep = `${JSON.stringify(POINT).slice(0, -1)},"deep":${"[".repeat(10_000)}${"]".repeat(10_000)}}`;
    await writers.other.put(`${prefix}${ID}/point.json`, Buffer.from(deep));
    await expect(begun.at(-1)?.merge(ID)).rejects.toMatchObject({ code: "E_MANIFEST" });
    expect(await names()).toEqual([`${ID}/point.json`, `${ID}/vda.qcow2`]);
    await begun.at(-1)?.clearLeftovers();
  });

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

  it("completes no image either where the store lists uploads late", async () => {
    prefix = "unlisted/vm/";
    const merge = await newImage();
    let taken: Promise<void> | undefined;
    let isTaken = false;
    let arrived = 0;
    let late: string | undefined;
    writers.line.fault = ({ method, url }) => {
      if (method === "GET" && url.includes("uploads")) {
        return { rewrite: (text) => text.replaceAll(/<Upload>.*?<\/Upload>/gs, "") };
      }
      if (method !== "POST" || !url.includes(`${ID}/vda.qcow2?uploadId`)) return undefined;
      late ??= url;
      if (url !== late) return undefined;
      // It arrives then, and once.
      if (isTaken) return arrived++ === 0 ? undefined : { answer: 404, code: "NoSuchUpload" };
      taken ??= takeOver(writers.mine).finally(() => {
        isTaken = true;
      });
      return "hang up";
    };
    await expect(commit(merge)).rejects.toThrow();
    await taken;
    expect(arrived).toBeGreaterThan(0);
    await assertAsBefore();
  });

  it("is undone without its note too, which an older version removes", async () => {
    prefix = "noteless/vm/";
    const merge = await newImage();
    const died = new Error("died");
    await expect(commit(merge, () => Promise.reject(died))).rejects.toBe(died);
    await writers.other.remove([`${prefix}.${ID}.partial`]);
    expect(await names()).toHaveLength(3);
    await takeOver();
    await assertAsBefore();
  });

  it("has small images copied whole: AWS copies no range of them", async () => {
    prefix = "small/vm/";
    const merge = await newImage();
    writers.line.fault = ({ copiedRange }) =>
      copiedRange ? { answer: 400, code: "InvalidRequest" } : undefined;
    await commit(merge);
    expect(await names()).toEqual([`${ID}/point.json`, `${ID}/vda.qcow2`]);
  });

  it("leaves the note of another process alone", async () => {
    prefix = "noted/vm/";
    const merge = await newImage();
    const note = `.${ID}.partial`;
    await commit(merge, async () => void (await writers.other.put(`${prefix}${note}`, Buffer.from("{}"))));
    expect(await names()).toEqual([note, `${ID}/point.json`, `${ID}/vda.qcow2`]);
  });

  it("loses nothing where the store copies another object, aside or back", async () => {
    prefix = "elsewhere/vm/";
    await writers.other.put("another", Buffer.from("odd"));
    const copiesWrong = (name: RegExp): void => {
      writers.line.fault = ({ method, url }) =>
        method === "PUT" && name.test(url) && url.includes("x-id=UploadPartCopy")
          ? { copyFrom: "backups/another" }
          : undefined;
    };
    const wrong = { code: "E_S3_FAILED", message: expect.stringContaining("does not copy") };
    const merge = await newImage();
    copiesWrong(/qcow2~/);
    await expect(commit(merge)).rejects.toMatchObject(wrong);
    await merge.discard();
    await assertAsBefore();

    await begun.pop()?.release();
    writers.line.fault = () => undefined;
    const again = await newImage();
    const died = new Error("died");
    await expect(commit(again, () => Promise.reject(died))).rejects.toBe(died);
    copiesWrong(/qcow2\?/);
    await expect(again.discard()).rejects.toMatchObject(wrong);
    expect(await names()).toHaveLength(4);
    writers.line.fault = () => undefined;
    await takeOver();
    await assertAsBefore();
  });

  it("sees that any part of a copy is from elsewhere", async () => {
    // The store copies at most 64 MiB at a time.
    await writers.other.put("large", randomBytes(64 * MIB + 1));
    for (const part of [1, 2]) {
      writers.line.fault = ({ method, url }) =>
        method === "PUT" && url.includes(`partNumber=${part}&`)
          ? { copyInstead: (first, last) => (part === 1 ? [first + 1, last + 1] : [first - 1, last - 1]) }
          : undefined;
      const copied = copyObject(writers.mine, "large", "copied", {});
      await expect(copied).rejects.toMatchObject({ code: "E_S3_FAILED" });
    }
  });
});
