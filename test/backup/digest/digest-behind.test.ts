import { readdir, readlink, truncate, writeFile } from "node:fs/promises";
import fc from "fast-check";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { BackupError } from "../../../src/backup/base/errors.js";
import type { DigestAlgorithm } from "../../../src/backup/digest/algorithms.js";
import { createDigester, digestClusters } from "../../../src/backup/digest/digest.js";
import { DigestBehind } from "../../../src/backup/digest/digest-behind.js";
import { DigestThreads } from "../../../src/backup/digest/digest-threads.js";
import type { ClusterRun, Geometry } from "../../../src/backup/image/image.js";
import { workers } from "../../support/recorded-workers.js";
import { KiB, MiB, scratch } from "../image/support.js";

vi.mock("node:worker_threads", async (original) => {
  const { recordedWorkers } = await import("../../support/recorded-workers.js");
  return recordedWorkers(await original());
});

/** Bytes without a pattern, so that no two clusters are alike. */
const CONTENT = Buffer.alloc(5 * MiB);
for (let at = 0, state = 1; at < CONTENT.length; at += 4) {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
  CONTENT.writeUInt32LE(state, at);
}

/** By default the calling thread digests nothing. */
function threadsOf(algorithm: DigestAlgorithm, fewBytes = 0): DigestThreads {
  const threads = new DigestThreads(algorithm, fewBytes);
  onTestFinished(() => threads.close());
  return threads;
}

async function behind(
  algorithm: DigestAlgorithm,
  content = CONTENT,
  threads = threadsOf(algorithm),
): Promise<[DigestBehind, string]> {
  const path = (await scratch())("image");
  await writeFile(path, content);
  return [new DigestBehind(path, threads), path];
}

async function expected(
  algorithm: DigestAlgorithm,
  runs: readonly ClusterRun[],
  geometry: Geometry,
): Promise<Buffer> {
  const digester = await createDigester(algorithm);
  const stored = runs.flatMap((run) => {
    if (run.kind === "zero" || (run.kind === "partial" && run.dataMask === 0)) return [];
    const slots = CONTENT.subarray(run.hostOffset, run.hostOffset + run.count * geometry.clusterSize);
    return [digestClusters(digester, run, slots, geometry)];
  });
  return Buffer.concat(stored);
}

const clusterSizes = fc.constantFrom(16 * KiB, 64 * KiB, 256 * KiB, MiB);
const wish = fc.record({
  kind: fc.constantFrom("data" as const, "data" as const, "partial" as const, "zero" as const),
  count: fc.integer({ min: 1, max: 6 }),
  dataMask: fc.oneof(fc.integer({ min: 0, max: 0xffffffff }), fc.constantFrom(1, 0x80000001, 0x55555555)),
});

/** Adjacent runs with adjacent slots, as far as the content reaches. */
function runsOf(
  wishes: readonly { kind: ClusterRun["kind"]; count: number; dataMask: number }[],
  size: number,
) {
  const runs: ClusterRun[] = [];
  let cluster = 0;
  let hostOffset = 0;
  for (const { kind, count, dataMask } of wishes) {
    if (kind === "partial") {
      const run = { kind, cluster, count: 1, dataMask, zeroMask: ~dataMask >>> 0 } as const;
      runs.push({ ...run, hostOffset: dataMask === 0 ? 0 : hostOffset });
      if (dataMask !== 0) hostOffset += size;
      cluster += 1;
    } else {
      runs.push(kind === "zero" ? { kind, cluster, count } : { kind, cluster, count, hostOffset });
      if (kind === "data") hostOffset += count * size;
      cluster += count;
    }
    if (hostOffset > CONTENT.length) runs.pop();
    if (hostOffset > CONTENT.length) break;
  }
  return runs;
}

describe.each([
  ["xxh64", "on a thread", 0],
  ["sha256", "on a thread", 0],
  ["sha256", "on the calling thread", Number.POSITIVE_INFINITY],
  ["xxh64", "on both", 20 * MiB],
] as const)("%s digests behind the write front, %s", (algorithm, _, fewBytes) => {
  it("match the clusters, whether whole, ragged or partial", async () => {
    const [digests] = await behind(algorithm, CONTENT, threadsOf(algorithm, fewBytes));
    const cases = fc.tuple(clusterSizes, fc.array(wish, { minLength: 1, maxLength: 8 }), fc.nat(300));
    await fc.assert(
      fc.asyncProperty(cases, async ([clusterSize, wishes, missing]) => {
        const runs = runsOf(wishes, clusterSize);
        const clusters = runs.reduce((sum, { count }) => sum + count, 0);
        const geometry = { virtualSize: Math.max(1, clusters * clusterSize - missing), clusterSize };
        const wanted = await expected(algorithm, runs, geometry);
        expect((await digests.digest(runs, geometry)).equals(wanted)).toBe(true);
      }),
      { numRuns: 60 },
    );
  });

  it("belong to their own requests, however many run at once", async () => {
    const [digests] = await behind(algorithm, CONTENT, threadsOf(algorithm, fewBytes));
    const geometry = { virtualSize: CONTENT.length, clusterSize: 16 * KiB };
    const questions = Array.from({ length: 200 }, (_, at): ClusterRun[] => [
      { kind: "data", cluster: at, count: 1 + (at % 7), hostOffset: at * 16 * KiB },
      { kind: "zero", cluster: at + 10, count: 5 },
    ]);
    const answers = await Promise.all(questions.map((runs) => digests.digest(runs, geometry)));
    for (const [at, runs] of questions.entries()) {
      expect(answers[at]?.equals(await expected(algorithm, runs, geometry))).toBe(true);
    }
  });
});

describe("digests behind the write front", () => {
  const geometry = { virtualSize: 64 * MiB, clusterSize: 64 * KiB };
  const first: ClusterRun = { kind: "data", cluster: 0, count: 1, hostOffset: 0 };

  it("need no thread if there is nothing to digest", async () => {
    const before = workers.length;
    const [digests] = await behind("xxh64");
    expect(await digests.digest([], geometry)).toHaveLength(0);
    expect(await digests.digest([{ kind: "zero", cluster: 0, count: 9 }], geometry)).toHaveLength(0);
    expect(workers).toHaveLength(before);
  });

  it("need no thread for the first bytes, and one for the rest", async () => {
    const before = workers.length;
    const [digests] = await behind("sha256", CONTENT, threadsOf("sha256", 8 * MiB));
    const few: ClusterRun = { kind: "data", cluster: 0, count: 40, hostOffset: 0 };
    for (let i = 0; i < 3; i += 1) await digests.digest([few], geometry);
    expect(workers).toHaveLength(before);
    await digests.digest([few], geometry);
    expect(workers).toHaveLength(before + 1);
    expect(await digests.digest([few], geometry)).toEqual(await expected("sha256", [few], geometry));
  });

  it("cover what the file holds at the time of the request", async () => {
    const [digests, path] = await behind("xxh64", Buffer.alloc(0));
    await writeFile(path, CONTENT);
    expect(await digests.digest([first], geometry)).toEqual(await expected("xxh64", [first], geometry));
  });

  it("let writers go on until too many bytes wait to be digested", async () => {
    const [digests] = await behind("xxh64", Buffer.alloc(64 * MiB));
    const all: ClusterRun = { kind: "data", cluster: 0, count: 1024, hostOffset: 0 };
    const asked = [digests.digest([all], geometry), digests.digest([all], geometry)];
    await digests.capacity();
    asked.push(digests.digest([first], geometry));
    let hasRoom = false;
    const room = digests.capacity().then(() => {
      hasRoom = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    expect(hasRoom).toBe(false);
    await Promise.all([...asked, room]);
  });

  it("fail if the file is too short, and so do all later requests", async () => {
    const [digests, path] = await behind("xxh64");
    await truncate(path, 65_535);
    const failure = { code: "E_DIGEST_READ", message: expect.stringMatching(/ends at byte 65535/) };
    await expect(digests.digest([first], geometry)).rejects.toMatchObject(failure);
    await expect(digests.capacity()).rejects.toMatchObject(failure);
    await expect(digests.digest([first], geometry)).rejects.toMatchObject(failure);
  });

  it("fail if the file does not exist", async () => {
    const digests = new DigestBehind((await scratch())("none"), threadsOf("sha256"));
    await expect(digests.digest([first], geometry)).rejects.toMatchObject({
      code: "E_DIGEST_READ",
      message: expect.stringContaining("ENOENT"),
    });
  });

  it("fail when a thread ends, and so do waits for capacity", async () => {
    const [digests] = await behind("sha256", Buffer.alloc(64 * MiB));
    const all: ClusterRun = { kind: "data", cluster: 0, count: 1024, hostOffset: 0 };
    const asked = [0, 1, 2, 3, 4].map(() => digests.digest([all], geometry));
    const room = digests.capacity();
    const outcomes = Promise.allSettled([...asked, room]);
    await workers.at(-1)?.terminate();
    const failures = (await outcomes).filter(({ status }) => status === "rejected");
    expect(failures.length).toBeGreaterThanOrEqual(2);
    await expect(room).rejects.toMatchObject({ code: "E_DIGEST_THREAD" });
    await expect(digests.digest([first], geometry)).rejects.toMatchObject({ code: "E_DIGEST_THREAD" });
  });

  it("fail if a thread sends more or fewer than were asked for", async () => {
    const threads = threadsOf("xxh64");
    const [digests] = await behind("xxh64", CONTENT, threads);
    vi.spyOn(threads, "ask").mockResolvedValueOnce(Buffer.alloc(7));
    const failure = { message: expect.stringContaining("the number of digests") };
    await expect(digests.digest([first], geometry)).rejects.toMatchObject(failure);
    await expect(digests.capacity()).rejects.toMatchObject(failure);
  });

  it("fail everything that no thread has taken yet, and all later requests, once they are closed", async () => {
    const [digests] = await behind("sha256", Buffer.alloc(64 * MiB));
    const all: ClusterRun = { kind: "data", cluster: 0, count: 1024, hostOffset: 0 };
    const reason = new BackupError("E_DIGEST_THREAD", "the image was closed");
    const asked = Array.from({ length: 40 }, () => digests.digest([all], geometry));
    const room = digests.capacity();
    const outcomes = Promise.allSettled(asked);
    digests.close(reason);
    await expect(room).rejects.toBe(reason);
    await expect(asked.at(-1)).rejects.toBe(reason);
    await expect(digests.digest([first], geometry)).rejects.toBe(reason);
    digests.close(new BackupError("E_DIGEST_THREAD", "once more"));
    await expect(digests.capacity()).rejects.toBe(reason);
    // Requests that a thread has already taken complete.
    const refused = (await outcomes).filter(({ status }) => status === "rejected");
    expect(refused.length).toBeGreaterThanOrEqual(32);
  });
});

describe.each([
  ["digest threads", 0],
  ["digests on the calling thread", 16 * MiB],
] as const)("%s", (_, fewBytes) => {
  const geometry = { virtualSize: 64 * MiB, clusterSize: 64 * KiB };
  const first: ClusterRun = { kind: "data", cluster: 0, count: 1, hostOffset: 0 };
  const isOpen = async (path: string): Promise<boolean> => {
    const numbers = await readdir("/proc/self/fd");
    const names = await Promise.all(numbers.map((n) => readlink(`/proc/self/fd/${n}`).catch(() => "")));
    return names.includes(path);
  };

  it("serve several files, each of which can fail or close on its own", async () => {
    const threads = threadsOf("xxh64", fewBytes);
    const [one, onePath] = await behind("xxh64", CONTENT, threads);
    const [two] = await behind("xxh64", CONTENT.subarray(64 * KiB), threads);
    const [broken] = await behind("xxh64", Buffer.alloc(10), threads);
    const second: ClusterRun = { ...first, hostOffset: 64 * KiB };
    const wanted = [await expected("xxh64", [first], geometry), await expected("xxh64", [second], geometry)];
    const failed = expect(broken.digest([first], geometry)).rejects.toMatchObject({ code: "E_DIGEST_READ" });
    expect(await Promise.all([one.digest([first], geometry), two.digest([first], geometry)])).toEqual(wanted);
    await failed;

    expect(await isOpen(onePath)).toBe(true);
    one.close(new BackupError("E_DIGEST_THREAD", "done"));
    expect(await two.digest([first], geometry)).toEqual(wanted[1]);
    await expect.poll(() => isOpen(onePath)).toBe(false);
  });

  it("are no more than the processors allow, however much is requested", async () => {
    const before = workers.length;
    const threads = threadsOf("xxh64", fewBytes);
    const [digests] = await behind("xxh64", Buffer.alloc(64 * MiB), threads);
    const all: ClusterRun = { kind: "data", cluster: 0, count: 1024, hostOffset: 0 };
    await Promise.all(Array.from({ length: 12 }, () => digests.digest([all], geometry)));
    expect(workers.length - before).toBeGreaterThanOrEqual(1);
    expect(workers.length - before).toBeLessThanOrEqual(threads.most);
  });

  it("fail pending and later requests once they are closed, and can be closed twice", async () => {
    const threads = threadsOf("sha256", fewBytes);
    const [digests] = await behind("sha256", CONTENT, threads);
    const asked = digests.digest([first], geometry);
    const given = expect(asked).rejects.toMatchObject({ code: "E_DIGEST_THREAD" });
    await threads.close();
    await given;
    await threads.close();
    const [other] = await behind("sha256", CONTENT, threads);
    await expect(other.digest([first], geometry)).rejects.toMatchObject({ code: "E_DIGEST_THREAD" });
  });
});
