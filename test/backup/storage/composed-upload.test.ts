/** Files whose parts would be larger than memory, in Ceph: the store composes them. */
import { randomBytes } from "node:crypto";
import { CreateBucketCommand, PutBucketVersioningCommand } from "@aws-sdk/client-s3";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { isPointId } from "../../../src/backup/repository/manifest.js";
import { mergeState } from "../../../src/backup/repository/merged-manifest.js";
import { ObjectAssembly } from "../../../src/backup/s3/assembly.js";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { ComposedLayout } from "../../../src/backup/s3/composed-layout.js";
import { copiesParts } from "../../../src/backup/s3/copies-parts.js";
import { PartObject } from "../../../src/backup/s3/part-object.js";
import { ObjectUpload } from "../../../src/backup/s3/upload.js";
import { asideName } from "../../../src/backup/storage/aside-name.js";
import { composedParts } from "../../../src/backup/storage/composed-parts.js";
import { writeInS3 } from "../../../src/backup/storage/s3-writing.js";
import type { StoreWriting } from "../../../src/backup/storage/stored-writing.js";
import type { BreakingStore } from "../../support/breaking-store.js";
import { collect } from "../../support/collect.js";
import { describeWith } from "../../support/tools.js";
import { withTwoWriters } from "../../support/two-writers.js";

const MIB = 1024 * 1024;
const TIB = 1024 ** 4;
const ID = "20261129T220000.000Z";
/** As S3 has it: no part but the last one has less. */
const PIECE = 5 * MIB;
/** Two parts as they are, and three of two pieces, the last of which is not full. */
const SIZE = 7 * PIECE + 12_345;

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "a file whose parts the store composes", () => {
  let line: BreakingStore;
  let mine: Bucket;
  let other: Bucket;
  let prefix = "";
  let rounds = 0;
  const begun: StoreWriting[] = [];
  const bytes = randomBytes(SIZE);

  withTwoWriters((writers) => {
    ({ line, mine, other } = writers);
  });
  beforeEach(() => {
    prefix = `round-${rounds++}/vm/`;
    line.seen.length = 0;
  });
  afterEach(async () => {
    line.fault = () => undefined;
    for (const writing of begun.splice(0)) await writing.release();
  });

  const key = (): string => `${prefix}${ID}/vda.qcow2`;
  const keyOf = (part: number): string => asideName(key(), `abcd000${part}`);

  function begin(signal?: AbortSignal): ObjectUpload {
    const layout = new ComposedLayout({ pieceBytes: PIECE, plainParts: 2, piecesOfAPart: 2 });
    const options = { mostBytes: SIZE, bufferBytes: 4 * PIECE, composed: { layout, keyOf }, signal };
    return new ObjectUpload(mine, key(), options);
  }

  /** All but the first part, which is written last. */
  async function writeBody(upload: ObjectUpload, end = SIZE): Promise<void> {
    for (let at = PIECE; at < end; at += MIB) {
      await upload.capacity();
      upload.writeNow(bytes.subarray(at, Math.min(end, at + MIB)), at);
    }
  }

  async function finish(upload: ObjectUpload): Promise<string> {
    await writeBody(upload);
    await upload.write(bytes.subarray(0, PIECE), 0);
    return (await upload.finish()).etag;
  }

  async function write(bucket: Bucket): Promise<StoreWriting> {
    const points = { manifest: "point.json", isPoint: isPointId, mergeState, onChange: () => undefined };
    const place = { bucket, prefix, path: "s3://backups/vm", ...points };
    const abilities = { conditionalCreate: true, conditionalReplace: true };
    const writing = await writeInS3(place, { abilities, of: "vm" });
    begun.push(writing);
    return writing;
  }

  async function keys(): Promise<string[]> {
    return (await collect(other.list(`${prefix}${ID}/`))).map((object) => object.key);
  }

  const copies = (): string[] => line.seen.filter((each) => each.includes("x-id=UploadPartCopy"));

  it("has every byte, took no more memory for it, and leaves nothing that it was made of", async () => {
    let broken = 0;
    line.fault = ({ method, url }) => {
      if (!url.includes("uploadId") || !(method === "POST" || url.includes("UploadPartCopy")))
        return undefined;
      broken += 1;
      return ([undefined, "lose answer", { answer: 503, code: "SlowDown" }] as const)[broken % 3];
    };
    const alloc = vi.spyOn(Buffer, "alloc");
    try {
      await using upload = begin();
      const etag = await finish(upload);
      const buffers = alloc.mock.calls.map(([size]) => size).filter((size) => size >= MIB);
      expect(buffers.reduce((sum, size) => sum + size, 0)).toBeLessThanOrEqual(4 * PIECE);
      const back = Buffer.alloc(SIZE);
      await other.readRange(key(), back, 0, { etag });
      expect(back.equals(bytes)).toBe(true);
    } finally {
      alloc.mockRestore();
    }
    expect(new Set(copies().map((each) => /partNumber=(\d)/.exec(each)?.[1]))).toEqual(
      new Set(["3", "4", "5"]),
    );
    expect(await keys()).toEqual([key()]);
    expect(await collect(other.pendingUploads(prefix))).toEqual([]);
  });

  it("is not composed where a copy of a kilobyte is never answered", async () => {
    const trial = async (): Promise<boolean> =>
      await copiesParts(mine, `${prefix}from`, `${prefix}to`, {}, 1500);
    line.fault = ({ url }) => (url.includes("UploadPartCopy") ? "never answer" : undefined);
    expect(await trial()).toBe(false);
    expect(await keys()).toEqual([]);
    line.fault = () => undefined;
    expect(await copiesParts(mine, `${prefix}from`, `${prefix}to`, {})).toBe(true);
    expect(await keys()).toEqual([]);
  });

  it("waits for a store that copies slowly, and does not fill it meanwhile", async () => {
    line.fault = ({ url }) => (url.includes("UploadPartCopy") ? "never answer" : undefined);
    const stop = new AbortController();
    const adds = vi.spyOn(PartObject.prototype, "add");
    await using upload = begin(stop.signal);
    const finished = expect(finish(upload)).rejects.toThrow("enough");
    const sends = (part: number): boolean =>
      line.seen.some((each) => /^(PUT|POST)/.test(each) && each.includes(`000${part}?`));
    // Two pieces of each of two parts were handed over, and the first one of the fifth part.
    await expect.poll(() => adds.mock.calls.length).toBeGreaterThanOrEqual(5);
    adds.mockRestore();
    await expect.poll(() => copies().length).toBeGreaterThan(0);
    // What was sent before them has arrived when they are answered.
    for (let turn = 0; turn < 10; turn += 1) await mine.find(key());
    expect([4, 5].map(sends)).toEqual([true, false]);
    stop.abort(new Error("enough"));
    await finished;
  });

  it("tells a failure at once, and has the store copy nothing more then", async () => {
    let isRefused = false;
    line.fault = ({ method, url }) => {
      if (url.includes("UploadPartCopy")) return "never answer";
      if (method !== "PUT" || !url.includes("0004?") || !url.includes("partNumber=1&")) return undefined;
      // Until a copy is under way it is asked again.
      if (copies().length === 0) return { answer: 503, code: "SlowDown" };
      isRefused = true;
      return { answer: 403, code: "AccessDenied" };
    };
    const begunAt = performance.now();
    {
      await using upload = begin();
      await expect(finish(upload)).rejects.toMatchObject({ code: "E_S3_ACCESS" });
      expect(isRefused).toBe(true);
    }
    expect(performance.now() - begunAt).toBeLessThan(20_000);
    expect(copies()).toHaveLength(1);
    expect(line.seen.filter((each) => each.includes("0005?"))).toEqual([]);
    expect(await collect(other.pendingUploads(prefix))).toEqual([]);
  }, 60_000);

  it("begins no further copy of a merge when one has failed", async () => {
    const etag = await other.put("source", bytes.subarray(0, PIECE));
    const range = { key: "source", etag, start: 0, length: PIECE };
    const ranges = Array.from({ length: 40 }, () => range);
    line.fault = ({ url }) => {
      if (!url.includes("UploadPartCopy")) return undefined;
      return url.includes("partNumber=8&") ? { answer: 403, code: "AccessDenied" } : "never answer";
    };
    const begunAt = performance.now();
    {
      const parts = { headBytes: 0, ranges, tailPartBytes: PIECE };
      await using assembly = await ObjectAssembly.begin(mine, key(), parts);
      await expect(assembly.send()).rejects.toMatchObject({ code: "E_S3_ACCESS" });
    }
    expect(performance.now() - begunAt).toBeLessThan(20_000);
    expect(copies()).toHaveLength(8);
  }, 60_000);

  it("removes nothing more when a removal has failed", async () => {
    const keys = Array.from({ length: 200 }, (_, i) => `${prefix}gone-${i}`);
    line.fault = ({ method, url }) => {
      if (method !== "DELETE") return undefined;
      return url.includes("gone-3?") ? { answer: 403, code: "AccessDenied" } : "never answer";
    };
    await expect(mine.remove(keys)).rejects.toMatchObject({ code: "E_S3_ACCESS" });
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(line.seen.length).toBeLessThanOrEqual(16);
  });

  it("has a store take its time for a copy: longer for a large part than for a small one", async () => {
    const idleMs = async (bytes: number): Promise<number | undefined> => {
      const { requestHandler } = (await mine.copier(bytes)).config;
      await requestHandler.handle({} as never, { abortSignal: AbortSignal.abort() }).catch(() => undefined);
      const handler = requestHandler as unknown as { httpHandlerConfigs(): { socketTimeout?: number } };
      return handler.httpHandlerConfigs().socketTimeout;
    };
    expect(await idleMs(64 * MIB)).toBe(300_000);
    expect(await idleMs(512 * MIB)).toBe(300_000);
    // At 2 MiB a second.
    expect(await idleMs(5 * 1024 * MIB)).toBeGreaterThanOrEqual(2560 * 1000);
    expect(await mine.copier(64 * MIB)).toBe(await mine.copier(512 * MIB));
  });

  it("is no success where the store copies something else", async () => {
    const another = Buffer.from(bytes.subarray(2 * PIECE, 4 * PIECE));
    // At one of the places that are looked at: the end of the part.
    another.fill(0, another.length - 10);
    await other.put("another", another);
    line.fault = ({ url }) =>
      url.includes("UploadPartCopy") && url.includes("partNumber=3")
        ? { copyFrom: "backups/another" }
        : undefined;
    await using upload = begin();
    await expect(finish(upload)).rejects.toMatchObject({
      code: "E_S3_FAILED",
      message: expect.stringContaining("does not copy what it is asked to"),
    });
  });

  it("is no success either where the store copies too little", async () => {
    await other.put("less", bytes.subarray(2 * PIECE, 3 * PIECE));
    line.fault = ({ url }) =>
      url.includes("UploadPartCopy") && url.includes("partNumber=3")
        ? { copyFrom: "backups/less" }
        : undefined;
    await using upload = begin();
    await expect(finish(upload)).rejects.toMatchObject({ code: "E_S3_FAILED" });
  });

  it("is cleared away with all that it is made of by the next one, if its process dies", async () => {
    const point = await (await write(mine)).begin(ID);
    const upload = begin();
    line.fault = ({ url }) => (url.includes("UploadPartCopy") ? "never answer" : undefined);
    // The second one of the pieces of part 4 is not full yet.
    void writeBody(upload, 5 * PIECE + 3 * MIB).catch(() => undefined);
    await expect.poll(() => copies().length).toBeGreaterThan(0);
    await expect.poll(keys).toEqual([keyOf(3)]);
    await expect.poll(async () => (await collect(other.pendingUploads(prefix))).length).toBe(2);
    await other.remove([`${prefix}.lease`]);
    await (await write(other)).clearLeftovers();
    expect(await keys()).toEqual([]);
    expect(await collect(other.pendingUploads(prefix))).toEqual([]);
    await expect(point.discard()).rejects.toMatchObject({ code: "E_LEASE_LOST" });
  });

  it("is begun only where the store copies and keeps no versions, and parts in memory do not suffice", async () => {
    const large = { mostBytes: TIB, bufferBytes: 40 * MIB };
    const isComposed = async (bucket: Bucket): Promise<boolean> => {
      const composed = await composedParts(bucket, key(), large);
      expect(await keys()).toEqual([]);
      return composed !== undefined;
    };
    expect(await isComposed(mine)).toBe(true);
    line.fault = ({ url }) =>
      url.includes("UploadPartCopy") ? { answer: 501, code: "NotImplemented" } : undefined;
    expect(await isComposed(mine)).toBe(false);
    await other.put("another", randomBytes(1024));
    line.fault = ({ url }) => (url.includes("UploadPartCopy") ? { copyFrom: "backups/another" } : undefined);
    expect(await isComposed(mine)).toBe(false);

    const named = { Bucket: "versions" };
    const VersioningConfiguration = { Status: "Enabled" } as const;
    await other.client.send(new CreateBucketCommand(named));
    await other.client.send(new PutBucketVersioningCommand({ ...named, VersioningConfiguration }));
    using versions = await Bucket.open({ bucket: "versions", prefix: "" });
    expect(await isComposed(versions)).toBe(false);

    line.seen.length = 0;
    expect(await composedParts(mine, key(), { ...large, mostBytes: 1024 * MIB })).toBeUndefined();
    expect(line.seen).toEqual([]);
  });
});
