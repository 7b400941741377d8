import { describe, expect, it } from "vitest";
import { ObjectAssembly } from "../../../src/backup/s3/assembly.js";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { patchedRanges } from "../../../src/backup/storage/patched-ranges.js";
import { restoreEnvironment } from "../../support/environment.js";
import { SmallStore } from "../../support/small-store.js";

const MiB = 1024 * 1024;
const LEAST_PART = 5 * MiB;

/** An object whose bytes at each position are known. */
function objectOf(size: number) {
  const bytes = Buffer.alloc(size, "as it was. ");
  const bucket: Pick<Bucket, "readRange"> = {
    readRange: async (_key, target, start) => void bytes.copy(target, 0, start, start + target.length),
  };
  const original = { key: "image", etag: "one", size, modifiedAt: new Date(0) };
  return { bytes, original, bucket: bucket as Bucket };
}

describe("the ranges of a patched object", () => {
  it("are the object with the patches, each long enough, and most of it copied", async () => {
    const { bytes, bucket, original } = objectOf(70 * MiB + 3);
    const expected = Buffer.from(bytes);
    const patch = (position: number, length: number) => {
      const content = Buffer.alloc(length, "mended");
      content.copy(expected, position);
      return { position, length, read: async () => content };
    };
    const patches = [
      // One that lies in two cells, neighbours, and the very end; not in order.
      patch(70 * MiB - 5, 8),
      patch(24 * MiB - 100, 1000),
      patch(3 * MiB, 65_536),
      patch(3 * MiB + 65_536, 65_536),
      { position: 50 * MiB, length: 10, read: async () => undefined },
    ];
    const made: Buffer[] = [];
    let copied = 0;
    const ranges = patchedRanges(bucket, original, patches);
    for (const [i, range] of ranges.entries()) {
      if (i < ranges.length - 1) expect(range.length).toBeGreaterThanOrEqual(LEAST_PART);
      if ("read" in range) made.push(await range.read(new AbortController().signal));
      else {
        expect(range).toMatchObject({ key: "image", etag: "one" });
        copied += range.length;
        made.push(bytes.subarray(range.start, range.start + range.length));
      }
    }
    expect(Buffer.concat(made).equals(expected)).toBe(true);
    expect(copied).toBe(32 * MiB);
  });

  it.each([
    ["the same cell", 24 * MiB + 1000, 24 * MiB + 4096],
    ["the next one", 24 * MiB - 100, 24 * MiB + 4096],
    ["across the end", 20 * MiB + 7, 20 * MiB],
  ])("fill an object up that ends before a patch: %s", async (_, size, position) => {
    const { bytes, bucket, original } = objectOf(size);
    const patch = { position, length: 512, read: async () => Buffer.alloc(512, "mended") };
    const made = await Promise.all(
      patchedRanges(bucket, original, [patch]).map(async (range) =>
        "read" in range
          ? await range.read(new AbortController().signal)
          : bytes.subarray(range.start, range.start + range.length),
      ),
    );
    const expected = Buffer.concat([bytes, Buffer.alloc(Math.max(0, position + 512 - size))]);
    expected.fill("mended", position, position + 512);
    expect(Buffer.concat(made).equals(expected)).toBe(true);
  });

  it("are not read any more when a part has failed", async () => {
    const before = { ...process.env };
    await using store = await SmallStore.start();
    Object.assign(process.env, { AWS_ACCESS_KEY_ID: "ONE", AWS_SECRET_ACCESS_KEY: "one" });
    const refuse: (() => void)[] = [];
    store.answer = ({ method, url, headers: { range } }, answer) => {
      if (method === "POST") {
        const begun =
          "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>";
        return void answer.end(begun);
      }
      if (method === "DELETE") return void answer.writeHead(204).end();
      if (method === "PUT") {
        return void refuse.push(() => answer.writeHead(403).end("<Error><Code>AccessDenied</Code></Error>"));
      }
      if (url.includes("uploadId")) return void answer.writeHead(404).end();
      // The first cell is sent, and the others are never answered.
      if (!range?.startsWith("bytes=0-")) return;
      const [length, etag] = [8 * MiB, "one"];
      answer.writeHead(206, { etag, "content-length": length, "content-range": `bytes 0-${length - 1}/9` });
      answer.end(Buffer.alloc(length));
    };
    const asked = (what: string): number => store.seen.filter(({ method }) => method === what).length;
    try {
      using bucket = await Bucket.open({ bucket: "b", prefix: "", endpoint: store.endpoint });
      const original = { key: "image", etag: "one", size: 64 * MiB, modifiedAt: new Date(0) };
      const patches = Array.from({ length: 8 }, (_, i) => ({
        position: i * 8 * MiB,
        length: 1,
        read: async () => Buffer.alloc(1),
      }));
      const ranges = patchedRanges(bucket, original, patches);
      const parts = { headBytes: 0, ranges, tailPartBytes: LEAST_PART };
      const begunAt = performance.now();
      {
        await using assembly = await ObjectAssembly.begin(bucket, "new", parts);
        const sent = expect(assembly.send()).rejects.toMatchObject({ code: "E_S3_ACCESS" });
        await expect.poll(() => [asked("GET"), refuse.length]).toEqual([4, 1]);
        refuse[0]?.();
        await sent;
      }
      expect(performance.now() - begunAt).toBeLessThan(10_000);
      expect(asked("PUT")).toBe(1);
    } finally {
      restoreEnvironment(before);
    }
  }, 120_000);

  it("are few enough for a store, however many patches there are", () => {
    const { bucket } = objectOf(0);
    const original = { key: "image", etag: "one", size: 200_000 * MiB, modifiedAt: new Date(0) };
    const patches = Array.from({ length: 12_500 }, (_, i) => ({
      position: i * 16 * MiB,
      length: 2,
      read: async () => undefined,
    }));
    const ranges = patchedRanges(bucket, original, patches);
    expect(ranges.length).toBeLessThanOrEqual(5_000);
    expect(ranges.reduce((sum, { length }) => sum + length, 0)).toBe(original.size);
  });
});
