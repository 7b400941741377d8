import { readFile, writeFile } from "node:fs/promises";
import { inflateRawSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BackupError } from "../../../src/backup/base/errors.js";
import type { ClusterJob, ClusterResult } from "../../../src/backup/compress/cluster-job.js";
import { ClusterJobs } from "../../../src/backup/compress/cluster-job.js";
import { compressSegment } from "../../../src/backup/compress/compress-segment.js";
import { CompressThreads } from "../../../src/backup/compress/compress-threads.js";
import { createDigester, digestClusters } from "../../../src/backup/digest/digest.js";
import {
  ALL_SUBCLUSTERS,
  type Geometry,
  maskStretches,
  type PlannedRun,
  slotsOf,
} from "../../../src/backup/image/image.js";
import { storeOutcomes } from "../../../src/backup/pull/compressed-store.js";
import type { Segment } from "../../../src/backup/pull/segment.js";
import { Qcow2CompressedWriter } from "../../../src/backup/qcow2/compressed-writer.js";
import { noise } from "../../support/noise.js";
import { qemuImg } from "../../support/qemu-nbd.js";
import { describeWith } from "../../support/tools.js";
import { assertSound, finished, KiB, scratch } from "../image/support.js";

const CLUSTER = 16 * KiB;
const DEFLATE = { method: "deflate", level: 1 } as const;

/** Slots of text, zeroes, noise, a partial cluster, and text up to the end of the disk. */
function job(options: Partial<ClusterJob> = {}): { job: ClusterJob; before: Buffer } {
  const bytes = Buffer.from(new ArrayBuffer(6 * CLUSTER));
  bytes.fill("text ", 0, CLUSTER);
  noise(CLUSTER, 1).copy(bytes, 2 * CLUSTER);
  bytes.fill("part ", 3 * CLUSTER, 3 * CLUSTER + CLUSTER / 32);
  bytes.fill("end ", 4 * CLUSTER, 6 * CLUSTER);
  const masks = Uint32Array.of(ALL_SUBCLUSTERS, ALL_SUBCLUSTERS, ALL_SUBCLUSTERS, 1, ALL_SUBCLUSTERS);
  const length = 5 * CLUSTER - 1000;
  const before = Buffer.from(bytes);
  return {
    job: { buffer: bytes.buffer, clusterSize: CLUSTER, masks, length, compression: DEFLATE, ...options },
    before,
  };
}

describe("CompressThreads", () => {
  it("compresses clusters in place, and leaves those that don't shrink as they are", async () => {
    await using workers = new CompressThreads();
    const { job: asked, before } = job();
    const { buffer, sizes } = await workers.run(asked);
    expect(asked.buffer.byteLength).toBe(0);
    const after = Buffer.from(buffer);
    const [text = 0, , , , end = 0] = sizes;
    expect(Array.from(sizes)).toEqual([text, 0, CLUSTER, CLUSTER, end]);
    expect(text).toBeLessThan(1000);
    const stream = (slot: number, size: number) => after.subarray(slot * CLUSTER, slot * CLUSTER + size);
    expect(inflateRawSync(stream(0, text)).equals(before.subarray(0, CLUSTER))).toBe(true);
    expect(stream(2, 2 * CLUSTER).equals(before.subarray(2 * CLUSTER, 4 * CLUSTER))).toBe(true);
    const last = before.subarray(4 * CLUSTER, 5 * CLUSTER).fill(0, CLUSTER - 1000);
    expect(inflateRawSync(stream(4, end)).equals(last)).toBe(true);
  });

  it.each(["xxh64", "sha256"] as const)("makes the same %s digests as the calling thread", async (digest) => {
    await using workers = new CompressThreads();
    const { job: asked, before } = job({ digest });
    const geometry = { clusterSize: CLUSTER, virtualSize: asked.length };
    const digester = await createDigester(digest);
    const { size } = digester;
    const { digests } = await workers.run(asked);
    expect(digests.length).toBe(5 * size);
    for (const cluster of [0, 2, 3, 4]) {
      const run = {
        cluster,
        count: 1,
        ...(cluster === 3 ? { kind: "partial", dataMask: 1 } : { kind: "data" }),
      };
      const slot = before.subarray(cluster * CLUSTER);
      const expected = digestClusters(digester, run as Parameters<typeof digestClusters>[1], slot, geometry);
      expect(digests.subarray(cluster * size, (cluster + 1) * size)).toEqual(expected);
    }
    expect(digests.subarray(size, 2 * size)).toEqual(Buffer.alloc(size));
  });

  it("only digests if nothing is to be compressed", async () => {
    await using workers = new CompressThreads();
    const { job: asked, before } = job({ digest: "xxh64", compression: undefined });
    const { buffer, sizes } = await workers.run(asked);
    expect(Array.from(sizes)).toEqual([CLUSTER, 0, CLUSTER, CLUSTER, CLUSTER]);
    expect(Buffer.from(buffer, 0, asked.length).equals(before.subarray(0, asked.length))).toBe(true);
  });

  it.each([1, 3])(
    "gives each of many concurrent jobs of several kinds the result it has alone, on %i threads",
    async (threads) => {
      // A single thread compresses on libuv's threads; each of several threads compresses by itself.
      await using workers = new CompressThreads({ threads });
      const kinds = [
        {},
        { digest: "xxh64" },
        { digest: "sha256", compression: { method: "deflate", level: 6 } },
      ] as const;
      const work = new ClusterJobs({ ownThread: false });
      const alone: ClusterResult[] = [];
      for (const kind of kinds) alone.push(await work.run(job(kind).job));
      work.close();
      const all = await Promise.all(Array.from({ length: 60 }, (_, i) => workers.run(job(kinds[i % 3]).job)));
      for (const [i, result] of all.entries()) {
        const expected = alone[i % 3] as ClusterResult;
        expect(result.sizes).toEqual(expected.sizes);
        expect(result.digests).toEqual(expected.digests);
        expect(Buffer.from(result.buffer).equals(Buffer.from(expected.buffer))).toBe(true);
      }
    },
  );

  it("fails an invalid job, and goes on with others", async () => {
    await using workers = new CompressThreads();
    const { job: asked } = job({ masks: new Uint32Array(100) });
    await expect(workers.run(asked)).rejects.toMatchObject({ code: "E_CLUSTER_WORKER" });
    expect((await workers.run(job().job)).sizes[1]).toBe(0);
  });

  it.each([
    ["throws", "throw new Error('out of luck')", "out of luck"],
    ["ends", "process.exit(7)", "exit code 7"],
    ["runs out of memory", "const all = []; for (;;) all.push(new Array(1e6).fill(all))", "memory"],
  ])("fails all jobs, with the reason, when a thread %s", async (_title, body, reason) => {
    const at = await scratch();
    const code = `require("node:worker_threads").parentPort.once("message", () => { ${body} });`;
    await writeFile(at("worker.cjs"), code);
    await using workers = new CompressThreads({ path: at("worker.cjs"), oldGenerationMb: 16 });
    const failed = await Promise.allSettled([workers.run(job().job), workers.run(job().job)]);
    for (const outcome of failed) {
      const error = outcome.status === "rejected" ? (outcome.reason as unknown) : undefined;
      expect(error).toBeInstanceOf(BackupError);
      expect(error).toMatchObject({
        code: "E_CLUSTER_WORKER",
        message: expect.stringContaining(reason) as string,
      });
    }
    await expect(workers.run(job().job)).rejects.toThrow(reason);
  });

  it("fails running and later jobs when it is closed", async () => {
    const workers = new CompressThreads({ threads: 2 });
    const running = Promise.allSettled([
      workers.run(job().job),
      workers.run(job().job),
      workers.run(job().job),
    ]);
    await workers.close();
    for (const outcome of await running) expect(outcome.status).toBe("rejected");
    await expect(workers.run(job().job)).rejects.toThrow("closed");
    await workers.close();
  });

  it("closes without ever having started a thread", async () => {
    await new CompressThreads().close();
  });
});

type Wish =
  | "data"
  | "noise"
  | "zero"
  | "zeroes"
  | "clean"
  | { readonly dataMask: number; readonly zeroMask: number };

const anyMask = fc.integer({ min: 0, max: ALL_SUBCLUSTERS });
const anyWish = fc.oneof(
  { weight: 5, arbitrary: fc.constantFrom<Wish>("data", "noise", "zero", "zeroes", "clean") },
  fc
    .tuple(anyMask, anyMask)
    .map(([a, b]) => ({ dataMask: a, zeroMask: (b & ~a) >>> 0 }))
    .filter(({ dataMask, zeroMask }) => (dataMask !== 0 || zeroMask !== 0) && dataMask !== ALL_SUBCLUSTERS),
);

function runOf(wish: Wish, cluster: number): PlannedRun | undefined {
  if (wish === "clean") return undefined;
  if (typeof wish === "object") return { kind: "partial", cluster, count: 1, ...wish };
  return { kind: wish === "zero" ? "zero" : "data", cluster, count: 1 };
}

function contentOf(wish: Wish, cluster: number): Buffer {
  const bytes = Buffer.alloc(CLUSTER);
  if (wish === "noise") return noise(CLUSTER, cluster);
  if (wish === "data") bytes.fill(`cluster ${cluster} `);
  if (typeof wish === "object") {
    for (const { offset, length } of maskStretches(wish.dataMask, CLUSTER))
      bytes.fill(`part ${cluster} `, offset, offset + length);
  }
  return bytes;
}

/** Segments of `size` clusters as a plan would make them, each with the bytes that a source would deliver. */
function segmentsOf(wishes: readonly Wish[], size: number): { segment: Segment; buffer: ArrayBuffer }[] {
  const segments: { segment: Segment; buffer: ArrayBuffer }[] = [];
  for (let first = 0; first < wishes.length; first += size) {
    const runs: PlannedRun[] = [];
    const buffer = Buffer.from(new ArrayBuffer(size * CLUSTER)).fill(0xee);
    let clusters = 0;
    for (const [i, wish] of wishes.slice(first, first + size).entries()) {
      const run = runOf(wish, first + i);
      if (run === undefined) continue;
      if (slotsOf(run) > 0) contentOf(wish, first + i).copy(buffer, clusters * CLUSTER);
      clusters += slotsOf(run);
      const last = runs.at(-1);
      const goesOn =
        last?.kind === "data" && run.kind === "data" && last.cluster + last.count === run.cluster;
      if (goesOn) runs[runs.length - 1] = { ...last, count: last.count + 1 };
      else runs.push(run);
    }
    segments.push({
      segment: { index: segments.length, runs, firstRank: 0, clusters },
      buffer: buffer.buffer,
    });
  }
  return segments;
}

function diskOf(wishes: readonly Wish[], below: Buffer): Buffer {
  const disk = Buffer.alloc(wishes.length * CLUSTER);
  below.copy(disk);
  for (const [cluster, wish] of wishes.entries()) {
    if (wish === "clean") continue;
    const mask = typeof wish === "object" ? (wish.dataMask | wish.zeroMask) >>> 0 : ALL_SUBCLUSTERS;
    const content = contentOf(wish, cluster);
    for (const { offset, length } of maskStretches(mask, CLUSTER)) {
      content.copy(disk, cluster * CLUSTER + offset, offset, offset + length);
    }
  }
  return disk.subarray(0, below.length);
}

describeWith(["qemu-img"], "compressed segments", () => {
  it("become images that QEMU reads back, with and without a backing image", async () => {
    const at = await scratch();
    await using workers = new CompressThreads();
    let run = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.array(anyWish, { minLength: 1, maxLength: 40 }),
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 0, max: 31 }),
        fc.boolean(),
        async (wishes, size, missing, complete) => {
          const geometry: Geometry = {
            virtualSize: wishes.length * CLUSTER - missing * 512,
            clusterSize: CLUSTER,
          };
          const below = complete ? Buffer.alloc(geometry.virtualSize) : noise(geometry.virtualSize, 99);
          await writeFile(at("below.raw"), below);
          const file = at(`disk${run++}.qcow2`);
          const backing = complete ? undefined : ({ name: "below.raw", format: "raw" } as const);
          const writer = await Qcow2CompressedWriter.create(file, {
            geometry,
            compression: "deflate",
            backing,
          });
          const segments = segmentsOf(wishes, size);
          const options = { digest: "xxh64", compression: DEFLATE } as const;
          const all = segments.map(({ segment, buffer }) =>
            compressSegment(segment, buffer, geometry, workers, options),
          );
          for (const { outcomes } of await Promise.all(all)) {
            storeOutcomes(outcomes, writer, { complete });
            for (const { digests, stored } of outcomes) expect(digests.length).toBe(8 * stored.length);
          }
          await finished(writer);
          await assertSound(file);
          await qemuImg("convert", "-f", "qcow2", "-O", "raw", file, at("disk.raw"));
          expect(diskOf(wishes, below).equals(await readFile(at("disk.raw")))).toBe(true);
        },
      ),
      { numRuns: 40 },
    );
  });
});
