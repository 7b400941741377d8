import { rm, truncate } from "node:fs/promises";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type VerifyProgress, verifyPoints } from "../../../src/backup/verify/verify.js";
import { VerifyThreads } from "../../../src/backup/verify/verify-threads.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { lethal, workers } from "../../support/recorded-workers.js";

vi.mock("node:worker_threads", async (original) => {
  const { recordedWorkers } = await import("../../support/recorded-workers.js");
  return recordedWorkers(await original());
});

const MiB = 1024 * 1024;
const SIZE = 40 * MiB;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(30 * MiB, 0x11));
  await chain.take();
  chain.disk.write(5 * MiB, Buffer.alloc(MiB, 0x22));
  await chain.take();
  // Forget the threads that made the digests.
  workers.length = 0;
});
afterEach(async () => {
  lethal.questions = false;
  await chain[Symbol.asyncDispose]();
});

const all = (): string[] => chain.points.map(({ id }) => id);

describe("the threads of verify", () => {
  it("are no more than the processors allow, and end with the work", async () => {
    await verifyPoints(chain.repository, MemoryChain.domain, all());
    expect(workers.length).toBeGreaterThan(0);
    expect(workers.length).toBeLessThanOrEqual(new VerifyThreads(SIZE).most);
    // A thread that has ended has the ID -1.
    expect(workers.map(({ threadId }) => threadId)).toEqual(workers.map(() => -1));
  });

  it("end at once when the signal fires, and nothing is reported", async () => {
    const stop = new AbortController();
    const verified = verifyPoints(chain.repository, MemoryChain.domain, all(), {
      signal: stop.signal,
      onProgress: () => stop.abort(new Error("enough")),
    });
    await expect(verified).rejects.toThrow("enough");
    expect(workers.length).toBeGreaterThan(0);
    expect(workers.map(({ threadId }) => threadId)).toEqual(workers.map(() => -1));
  });

  it("fail the work when one of them dies, instead of calling anything sound", async () => {
    lethal.questions = true;
    const verified = verifyPoints(chain.repository, MemoryChain.domain, all());
    await expect(verified).rejects.toMatchObject({ code: "E_VERIFY_THREAD" });
  });

  it("report an image that can no longer be opened", async () => {
    await using threads = new VerifyThreads(SIZE);
    const [point] = chain.points;
    if (!point) throw new Error("no point");
    const path = chain.pathOf(point, "vda.qcow2");
    await rm(path);
    const geometry = { virtualSize: SIZE, clusterSize: 65_536 };
    const question = {
      image: { path, format: "qcow2", geometry, algorithm: "xxh64" },
      runs: [{ kind: "data", cluster: 0, count: 1, hostOffset: 65_536 }],
      digests: new Uint8Array(8),
    } as const;
    await expect(threads.ask(question)).rejects.toMatchObject({
      code: "E_VERIFY_THREAD",
      message: expect.stringContaining("ENOENT"),
    });
  });
});

describe.each([
  ["other threads", SIZE],
  ["the calling thread", 0],
])("a request to %s", (_, bytes) => {
  it("reports damage if the image was changed after it was checked", async () => {
    await using threads = new VerifyThreads(bytes);
    const [point] = chain.points;
    if (!point) throw new Error("no point");
    const path = chain.pathOf(point, "vda.qcow2");
    await truncate(path, 100);
    const answer = await threads.ask({
      image: {
        path,
        format: "qcow2",
        geometry: { virtualSize: SIZE, clusterSize: 65_536 },
        algorithm: "xxh64",
      },
      runs: [{ kind: "data", cluster: 0, count: 1, hostOffset: 65_536 }],
      digests: new Uint8Array(8),
    });
    expect(answer).toEqual([{ message: expect.stringContaining(path) }]);
  });
});

describe("the progress of verify", () => {
  it("covers each disk in all points, and reaches the total", async () => {
    const told: [string, VerifyProgress][] = [];
    const onProgress = (disk: string, progress: VerifyProgress): unknown => told.push([disk, progress]);
    const reports = await verifyPoints(chain.repository, MemoryChain.domain, all(), { onProgress });
    const bytes = reports.flatMap(({ disks }) => disks.map(({ verifiedBytes }) => verifiedBytes));
    expect(bytes).toEqual([30 * MiB, MiB]);
    expect(told.at(-1)).toEqual(["vda", { verifiedBytes: 31 * MiB, totalBytes: 31 * MiB }]);
    const amounts = told.map(([, { verifiedBytes }]) => verifiedBytes);
    expect(amounts).toEqual(amounts.toSorted((a, b) => a - b));
  });
});
