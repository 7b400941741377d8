import { readdirSync, rmdirSync } from "node:fs";
import { mkdtemp, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { BackupError } from "../../../src/backup/base/errors.js";
import type { Layer } from "../../../src/backup/chain/layer.js";
import { HEAD_BYTES, HEADER_BYTES } from "../../../src/backup/digest/digest-file.js";
import { ImageFile } from "../../../src/backup/image/image-file.js";
import { MergeService, type TakeQuestion } from "../../../src/backup/prune/merge-service.js";
import { MergeThreads } from "../../../src/backup/prune/merge-threads.js";
import { type PruneOptions, prune } from "../../../src/backup/prune/prune.js";
import { TakenClusters } from "../../../src/backup/prune/taken-clusters.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { nbdpull } from "../../support/nbdpull.js";
import { lethal, sent, workers } from "../../support/recorded-workers.js";

vi.mock("node:worker_threads", async (original) => {
  const { recordedWorkers } = await import("../../support/recorded-workers.js");
  return recordedWorkers(await original());
});

const MiB = 1024 * 1024;
const CLUSTER = 64 * 1024;

let taken: MemoryChain;
let chain: MemoryChain;
beforeAll(async () => {
  taken = await MemoryChain.start(128 * MiB + 577);
  // The full point's image takes the others' data: 20 MiB over its own, and 16 MiB into new clusters.
  taken.disk.write(0, Buffer.alloc(80 * MiB, 0x11));
  await taken.take({ digests: "sha256" });
  taken.disk.write(60 * MiB, Buffer.alloc(36 * MiB, 0x22));
  await taken.take({ digests: "sha256" });
  taken.disk.write(0, Buffer.alloc(CLUSTER, 0x33));
  await taken.take({ digests: "sha256" });
});
afterAll(async () => {
  await taken[Symbol.asyncDispose]();
});
beforeEach(async () => {
  chain = await taken.copy();
  workers.length = 0;
  sent.length = 0;
});
afterEach(async () => {
  lethal.questions = false;
  await chain[Symbol.asyncDispose]();
});

const domain = MemoryChain.domain;

function pruning(more: Partial<PruneOptions> = {}) {
  const { repository } = chain;
  return prune({ repository, domain, retention: { last: 1 }, dryRun: false, sync: false, ...more });
}

function expectNoThreads(): void {
  expect(workers.length).toBeGreaterThan(0);
  expect(workers.map(({ threadId }) => threadId)).toEqual(workers.map(() => -1));
}

async function expectUnchanged(): Promise<void> {
  expect(await chain.repository.pointIds(domain)).toEqual(chain.points.map(({ id }) => id));
  const left = await readdir(join(chain.repository.path, domain));
  expect(left.filter((name) => name.startsWith("."))).toEqual([]);
}

async function expectNewest(): Promise<void> {
  const newest = chain.points.at(-1)?.id ?? "";
  const target = join(chain.folder, "restored");
  const ran = await nbdpull("restore", chain.repository.path, domain, "--at", newest, "--to", target);
  expect([ran.code, ran.stderr]).toEqual([0, ""]);
  const restored = await readFile(join(target, "vda.raw"));
  expect(restored.equals(await chain.contentOf(newest))).toBe(true);
}

describe("the threads of a prune", () => {
  it("take over what the newest point needs, and end with the work", async () => {
    await pruning();
    expectNoThreads();
    expect(sent.at(-1)).toMatchObject({ question: { end: { sync: false } } });
    await expectNewest();
    expect((await nbdpull("verify", chain.repository.path)).code).toBe(0);
  });

  it.each([
    ["over the image's own", 65],
    ["into a new cluster, last of all", 96 - CLUSTER / MiB],
  ])("change no point if data is damaged that would be written %s", async (_, place) => {
    // The increment's image has its data from its second cluster on, in guest order.
    const at = CLUSTER + (place - 60) * MiB;
    await using image = await open(chain.file(1), "r+");
    await image.write(Buffer.from([0x23]), 0, 1, at + 100);
    await expect(pruning()).rejects.toMatchObject({
      code: "E_DAMAGED",
      details: { point: chain.points[1]?.id, disk: "vda", guestOffset: place * MiB },
    });
    expectNoThreads();
    await expectUnchanged();
    await image.write(Buffer.from([0x22]), 0, 1, at + 100);
    await expectNewest();
  });

  it("change no point if one of them dies, and do the work the next time", async () => {
    lethal.questions = true;
    await expect(pruning()).rejects.toMatchObject({ code: "E_MERGE_THREAD" });
    await expectUnchanged();
    lethal.questions = false;
    await pruning();
    await expectNewest();
  });

  it("undo nothing that may be another holder's when they see that the lock was lost", async () => {
    const inside = join(chain.repository.path, domain);
    const onStep = (step: string): void => {
      if (step !== "journal") return;
      // The lock was looked at within a second, so only the threads look again.
      for (const name of readdirSync(inside)) if (name.startsWith(".holder-")) rmdirSync(join(inside, name));
    };
    await expect(pruning({ onStep })).rejects.toMatchObject({ code: "E_LOCK_LOST" });
    const left = (await readdir(inside)).filter((name) => name.startsWith("."));
    expect(left.sort()).toEqual([".lock", ".prune"]);
    await rm(join(inside, ".lock"), { recursive: true });
    await pruning();
    await expectNewest();
  });

  it("end when the signal fires", async () => {
    const stop = new AbortController();
    const onProgress = (): void => stop.abort(new Error("enough"));
    await expect(pruning({ signal: stop.signal, onProgress })).rejects.toThrow("enough");
    expectNoThreads();
    await expectUnchanged();
    await expectNewest();
  });
});

describe("a thread of a prune", () => {
  let folder: string;
  let service: MergeService;
  let question: TakeQuestion;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "nbdpull-merge-"));
    service = new MergeService();
    const target = join(folder, "target");
    await writeFile(target, Buffer.alloc(CLUSTER));
    const file = await open(chain.file(1).replace(/qcow2$/, "digests"));
    const digests = new Uint8Array(32);
    // Behind the header and the head of the first record.
    await file.read(digests, 0, 32, HEADER_BYTES + HEAD_BYTES);
    await file.close();
    const geometry = { virtualSize: chain.points[1]?.disks[0]?.virtualSize ?? 0, clusterSize: CLUSTER };
    const images = [
      { path: chain.file(1), format: "qcow2" as const, geometry, algorithm: "sha256" as const },
    ];
    const runs = [{ image: 0, cluster: 960, count: 1, from: CLUSTER, to: 0 }];
    const mark = { path: join(folder, "mark"), lookAgainMs: 0 };
    await writeFile(mark.path, "");
    question = { images, runs, digests, target, mark };
  });
  afterEach(async () => {
    vi.restoreAllMocks();
    await service.close();
    await rm(folder, { recursive: true });
  });

  const ask = (more: Partial<TakeQuestion> = {}) =>
    service.answer({ ...question, digests: question.digests.slice(), ...more });
  const written = async (path: string): Promise<number | undefined> => (await readFile(path))[0];

  it("writes nothing when the lock's mark is gone, as after a suspension", async () => {
    expect(await ask()).toEqual({ done: true });
    expect((await readFile(question.target)).equals(Buffer.alloc(CLUSTER, 0x22))).toBe(true);
    await writeFile(question.target, Buffer.alloc(CLUSTER));
    await rm(question.mark.path);
    expect(await ask()).toMatchObject({ failure: { code: "E_LOCK_LOST" } });
    expect((await readFile(question.target)).equals(Buffer.alloc(CLUSTER))).toBe(true);
  });

  it("writes to no other target before the end of the first", async () => {
    const target = join(folder, "other");
    await writeFile(target, Buffer.alloc(CLUSTER));
    await ask();
    await expect(ask({ target })).rejects.toThrow("another target");
    expect(await written(target)).toBe(0);
    await service.answer({ end: { sync: true } });
    expect(await ask({ target })).toEqual({ done: true });
    expect(await written(target)).toBe(0x22);
  });

  it("tells the system's code of a target or an image that it can't open", async () => {
    const failure = { code: "ENOENT", message: expect.stringContaining("missing") };
    expect(await ask({ target: join(folder, "missing") })).toMatchObject({ failure });
    const images = question.images.map((image) => ({ ...image, path: join(folder, "missing") }));
    expect(await ask({ images })).toMatchObject({ failure });
  });

  it.each(["datasync", "close"] as const)(
    "tells before the end what is lost of what it wrote: %s",
    async (step) => {
      const opening = ImageFile.openForWriting.bind(ImageFile);
      vi.spyOn(ImageFile, "openForWriting").mockImplementation(async (path) => {
        const file = await opening(path);
        const closing = file.close.bind(file);
        vi.spyOn(file, step).mockImplementation(async () => {
          if (step === "close") await closing();
          throw new BackupError("EDQUOT", "the server has no room for what it took");
        });
        return file;
      });
      const { mark, target, digests, images } = question;
      // So few bytes that this thread merges them.
      await using threads = new MergeThreads(0);
      const taken = new TakenClusters({ threads, mark, target });
      const [stored] = images;
      const run = { kind: "data" as const, cluster: 960, count: 1, hostOffset: CLUSTER, digests: undefined };
      const layer = { geometry: stored?.geometry, stored } as unknown as Layer;
      await taken.take({ layer, run }, Buffer.from(digests), [{ cluster: 960, count: 1, to: 0 }]);
      await expect(taken.finish({ sync: true })).rejects.toMatchObject({ code: "EDQUOT" });
      expect(await written(target)).toBe(0x22);
      await taken.close();
    },
  );
});
