/** Objects that are written from front to back while their parts are uploaded, in Ceph. */
import { randomBytes } from "node:crypto";
import { ListPartsCommand } from "@aws-sdk/client-s3";
import { beforeEach, expect, it, vi } from "vitest";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { imageBufferBytes } from "../../../src/backup/s3/part-layout.js";
import { ObjectUpload, type UploadOptions } from "../../../src/backup/s3/upload.js";
import { collect } from "../../support/collect.js";
import { type StoreLab, withStoreLab } from "../../support/store-lab.js";
import { describeWith } from "../../support/tools.js";

const MIB = 1024 * 1024;

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "an object in Ceph that is written", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });
  beforeEach(() => {
    lab.line.seen.length = 0;
  });

  const opened = (prefix: string): Promise<Bucket> => Bucket.open({ bucket: lab.bucket, prefix });

  const pieces = async (upload: ObjectUpload, bytes: Buffer, from: number): Promise<void> => {
    for (let at = from; at < bytes.length; at += 300_000) {
      await upload.capacity();
      upload.writeNow(bytes.subarray(at, at + 300_000), at);
    }
  };

  it.each([
    ["a small object", 100_000],
    ["just a part", 8 * MIB],
    ["several parts", 43 * MIB + 17],
  ])("uploads %s with its head last, though the line breaks", async (_, length) => {
    using bucket = await opened("upload/");
    const bytes = randomBytes(length);
    const head = Math.min(length, 65_536);
    await using upload = new ObjectUpload(bucket, "upload/one", { mostBytes: length });
    let broken = 0;
    lab.line.fault = ({ method }) => {
      if (method !== "PUT" && method !== "POST") return undefined;
      broken += 1;
      return (
        [
          "lose answer",
          undefined,
          "hang up",
          undefined,
          { answer: 503, code: "SlowDown" },
          undefined,
        ] as const
      )[broken % 6];
    };
    await pieces(upload, bytes, head);
    upload.writeNow(bytes.subarray(0, head), 0);
    const { size, etag } = await upload.finish();
    lab.line.fault = () => undefined;
    expect(size).toBe(length);
    const back = Buffer.alloc(length);
    await bucket.readRange("upload/one", back, 0, { etag });
    expect(back.equals(bytes)).toBe(true);
    expect(await collect(bucket.pendingUploads("upload/"))).toEqual([]);
  });

  it.each([
    ["front to back", true],
    ["its head last", false],
  ])("uploads a file with gaps, written %s, a part at a time", async (_, inOrder) => {
    using bucket = await opened("gaps/");
    const expected = Buffer.alloc(60 * MIB + 9);
    await using upload = new ObjectUpload(bucket, "gaps/one", { mostBytes: expected.length, inOrder });
    for (const at of inOrder ? [0, 30 * MIB, 59 * MIB] : [30 * MIB, 59 * MIB, 0]) {
      const bytes = randomBytes(MIB);
      bytes.copy(expected, at);
      await upload.write(bytes, at);
    }
    upload.truncate(expected.length);
    const { etag, size } = await upload.finish();
    expect(size).toBe(expected.length);
    const back = Buffer.alloc(size);
    await bucket.readRange("gaps/one", back, 0, { etag });
    expect(back.equals(expected)).toBe(true);
    const parts = lab.line.seen.flatMap((each) => /^PUT .*partNumber=(\d+)/.exec(each)?.[1] ?? []);
    expect(parts).toHaveLength(8);
    if (!inOrder) expect(parts.at(-1)).toBe("1");
  });

  it("uploads the part with the head after all others", async () => {
    using bucket = await opened("order/");
    const bytes = randomBytes(30 * MIB);
    await using upload = new ObjectUpload(bucket, "order/one", { mostBytes: bytes.length });
    await pieces(upload, bytes, 0);
    await upload.finish();
    const parts = lab.line.seen.flatMap((each) => /^PUT .*partNumber=(\d+)/.exec(each)?.[1] ?? []);
    expect(parts).toHaveLength(4);
    expect(parts.at(-1)).toBe("1");
  });

  it("cuts off what was written behind the end", async () => {
    using bucket = await opened("cut/");
    const bytes = randomBytes(21 * MIB);
    await using upload = new ObjectUpload(bucket, "cut/one", { mostBytes: bytes.length });
    await pieces(upload, bytes, 0);
    upload.truncate(20 * MIB + 5);
    const { size, etag } = await upload.finish();
    const back = Buffer.alloc(size);
    await bucket.readRange("cut/one", back, 0, { etag });
    expect(back.equals(bytes.subarray(0, 20 * MIB + 5))).toBe(true);
  });

  it.each([
    ["two", 2],
    ["three", 3],
  ])(
    "takes at most 96 MiB for %s large disks and their digests, which are uploaded side by side",
    async (_, atOnce) => {
      using bucket = await opened("memory/");
      const alloc = vi.spyOn(Buffer, "alloc");
      const bytes = randomBytes(MIB);
      const uploaded = async (name: string, length: number, options: UploadOptions): Promise<number> => {
        await using upload = new ObjectUpload(bucket, `memory/${name}`, options);
        for (let at = options.inOrder ? 0 : MIB; at < length; at += MIB) {
          if (options.inOrder) await upload.write(bytes, at);
          else {
            await upload.capacity();
            upload.writeNow(bytes, at);
          }
        }
        if (!options.inOrder) await upload.write(bytes, 0);
        return (await upload.finish()).size;
      };
      try {
        const image = { mostBytes: 16 * 1024 * 1024 * MIB, bufferBytes: imageBufferBytes(atOnce) };
        const digests = { mostBytes: 4096 * MIB, bufferBytes: 8 * MIB, inOrder: true };
        const sizes = ["a", "b", "c"]
          .slice(0, atOnce)
          .flatMap((disk) => [
            uploaded(`${disk}.qcow2`, 60 * MIB, image),
            uploaded(`${disk}.digests`, 20 * MIB, digests),
          ]);
        expect(await Promise.all(sizes)).toEqual(
          Array.from({ length: atOnce }, () => [60 * MIB, 20 * MIB]).flat(),
        );
        const buffers = alloc.mock.calls.map(([size]) => size).filter((size) => size >= MIB);
        const total = buffers.reduce((sum, size) => sum + size, 0);
        expect(total).toBeLessThanOrEqual(96 * MIB);
        expect(total).toBeGreaterThan(64 * MIB);
      } finally {
        alloc.mockRestore();
      }
    },
  );

  it("refuses what would change a part that is on its way", async () => {
    using bucket = await opened("late/");
    lab.line.fault = ({ url }) => (url.includes("partNumber=2") ? "never answer" : undefined);
    const stop = new AbortController();
    const { signal } = stop;
    await using upload = new ObjectUpload(bucket, "late/one", { mostBytes: 30 * MIB, signal });
    await pieces(upload, randomBytes(20 * MIB), 0);
    await expect.poll(() => lab.line.seen.some((each) => each.includes("partNumber=2"))).toBe(true);
    const late = Buffer.from("late");
    expect(() => upload.writeNow(late, 9 * MIB)).toThrow("part 2 of late/one was uploaded already");
    upload.writeNow(late, 0);
    upload.writeNow(late, 17 * MIB);
    stop.abort(new Error("enough"));
  });

  it("leaves neither an object nor parts when it is not finished", async () => {
    using bucket = await opened("left/");
    const bytes = randomBytes(30 * MIB);
    {
      await using upload = new ObjectUpload(bucket, "left/one", { mostBytes: bytes.length });
      await pieces(upload, bytes, 0);
    }
    expect(await bucket.find("left/one")).toBeUndefined();
    expect(await collect(bucket.pendingUploads("left/"))).toEqual([]);
    lab.line.fault = ({ url }) =>
      url.includes("partNumber=2") ? { answer: 403, code: "AccessDenied" } : undefined;
    {
      await using upload = new ObjectUpload(bucket, "left/two", { mostBytes: bytes.length });
      const all = pieces(upload, bytes, 0).then(() => upload.finish());
      await expect(all).rejects.toMatchObject({ code: "E_S3_ACCESS" });
    }
    expect(await bucket.find("left/two")).toBeUndefined();
    expect(await collect(bucket.pendingUploads("left/"))).toEqual([]);
  });

  it("knows a completion whose answer was lost", async () => {
    using bucket = await opened("completed/");
    const bytes = randomBytes(20 * MIB);
    await using upload = new ObjectUpload(bucket, "completed/one", { mostBytes: bytes.length });
    await pieces(upload, bytes, 0);
    lab.line.breakFirst(1, /^POST .*uploadId=/, "lose answer");
    expect(await upload.finish()).toMatchObject({ size: bytes.length });
    expect(await bucket.find("completed/one")).toMatchObject({ size: bytes.length });
  });

  it("finds and aborts uploads that a dead process left", async () => {
    using bucket = await opened("dead/");
    const bytes = randomBytes(20 * MIB);
    const upload = new ObjectUpload(bucket, "dead/one", { mostBytes: bytes.length });
    await pieces(upload, bytes, 0);
    await expect
      .poll(() => lab.line.seen.filter((each) => each.includes("partNumber")).length)
      .toBeGreaterThan(0);
    const pending = await collect(bucket.pendingUploads("dead/"));
    expect(pending).toMatchObject([{ key: "dead/one" }]);
    const { uploadId = "" } = pending[0] ?? {};
    await bucket.abortUpload({ key: "dead/one", uploadId });
    await bucket.abortUpload({ key: "dead/one", uploadId });
    const parts = new ListPartsCommand({ Bucket: lab.bucket, Key: "dead/one", UploadId: uploadId });
    await expect(lab.client.send(parts)).rejects.toMatchObject({ $metadata: { httpStatusCode: 404 } });
    await expect(upload.finish()).rejects.toMatchObject({ code: "E_S3_FAILED" });
    await upload[Symbol.asyncDispose]();
  });
});
