import { mkdir, open, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { BackupError } from "../../../src/backup/base/errors.js";
import { exists } from "../../../src/backup/host/durable-files.js";
import { ImageFile } from "../../../src/backup/image/image-file.js";
import { CopyThreads } from "../../../src/backup/restore/copy-threads.js";
import { restore } from "../../../src/backup/restore/restore.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { lethal, workers } from "../../support/recorded-workers.js";
import { mountSmall } from "../../support/small-file-system.js";
import { skipUnable } from "../../support/tools.js";

vi.mock("node:worker_threads", async (original) => {
  const { recordedWorkers } = await import("../../support/recorded-workers.js");
  return recordedWorkers(await original());
});

const KiB = 1024;
const MiB = 1024 * KiB;
const CLUSTER = 64 * KiB;
const SIZE = 40 * MiB;

let chain: MemoryChain;
let target: string;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(30 * MiB, 0x11));
  await chain.take();
  chain.disk.write(5 * MiB, Buffer.alloc(MiB, 0x22));
  await chain.take();
  target = join(chain.folder, "restored.raw");
  // Forget the threads that made the digests.
  workers.length = 0;
});
afterEach(async () => {
  lethal.questions = false;
  await chain[Symbol.asyncDispose]();
});

function restoring(signal?: AbortSignal, onProgress?: () => void) {
  const point = chain.points.at(-1);
  if (!point) throw new Error("no point");
  const { repository } = chain;
  const targets = [{ disk: "vda", path: target, format: "raw" as const }];
  const how = { force: false, sync: false, signal, onProgress };
  return restore({ repository, domain: MemoryChain.domain, point, targets, ...how });
}

describe("the threads of a restore", () => {
  it("are few, and end with the work", async () => {
    await restoring();
    expect((await readFile(target)).equals(chain.disk.read(0, SIZE))).toBe(true);
    expect(workers.length).toBeGreaterThan(0);
    expect(workers.length).toBeLessThanOrEqual(new CopyThreads(SIZE).most);
    expect(workers.map(({ threadId }) => threadId)).toEqual(workers.map(() => -1));
  });

  it("end at once when the signal fires, and leave nothing at the target", async () => {
    const stop = new AbortController();
    await expect(restoring(stop.signal, () => stop.abort(new Error("enough")))).rejects.toThrow("enough");
    expect(workers.length).toBeGreaterThan(0);
    expect(workers.map(({ threadId }) => threadId)).toEqual(workers.map(() => -1));
    expect(await exists(target)).toBe(false);
  });

  it("fail the restore when one of them dies, instead of leaving a hole", async () => {
    lethal.questions = true;
    await expect(restoring()).rejects.toMatchObject({ code: "E_COPY_THREAD" });
    expect(await exists(target)).toBe(false);
  });
});

describe("a restore of a small disk", () => {
  let small: MemoryChain;
  beforeEach(async () => {
    small = await MemoryChain.start(3 * MiB + 577);
    small.disk.write(0, Buffer.alloc(2 * MiB, 0x11));
    await small.take();
    small.disk.write(MiB, Buffer.alloc(MiB, 0x22));
    await small.take();
    workers.length = 0;
  });
  afterEach(async () => {
    await small[Symbol.asyncDispose]();
  });

  function restoringSmall(signal?: AbortSignal) {
    const point = small.points.at(-1);
    if (!point) throw new Error("no point");
    const targets = [{ disk: "vda", path: target, format: "raw" as const }];
    const how = { domain: MemoryChain.domain, targets, force: false, sync: false, signal };
    return restore({ repository: small.repository, point, ...how });
  }
  const descriptors = async (): Promise<string[]> =>
    (
      await Promise.all(
        (await readdir("/proc/self/fd")).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => "")),
      )
    ).filter((path) => path.startsWith(small.folder) || path.startsWith(chain.folder));

  it("starts no threads, and leaves no file open", async () => {
    await restoringSmall();
    expect((await readFile(target)).equals(small.disk.read(0, 3 * MiB + 577))).toBe(true);
    expect(workers).toEqual([]);
    expect(await descriptors()).toEqual([]);
  });

  it("is none if the file system tells at the close that it has lost what was written", async () => {
    const opening = ImageFile.openForWriting.bind(ImageFile);
    const spied = vi.spyOn(ImageFile, "openForWriting").mockImplementation(async (path) => {
      const file = await opening(path);
      const closing = file.close.bind(file);
      file.close = async () => {
        await closing();
        throw new BackupError("EDQUOT", "the server has no room for what it took");
      };
      return file;
    });
    try {
      await expect(restoringSmall()).rejects.toMatchObject({ code: "EDQUOT" });
    } finally {
      spied.mockRestore();
    }
    expect(await exists(target)).toBe(false);
    expect(await descriptors()).toEqual([]);
  });

  it("finds damage, and leaves neither a target nor an open file", async () => {
    const [point] = small.points;
    if (!point) throw new Error("no point");
    {
      await using image = await open(small.pathOf(point, "vda.qcow2"), "r+");
      await image.write(Buffer.from([0x12]), 0, 1, CLUSTER + 100);
    }
    await expect(restoringSmall()).rejects.toMatchObject({ code: "E_DAMAGED" });
    expect(await exists(target)).toBe(false);
    expect(await descriptors()).toEqual([]);
  });

  it("ends when the signal fires", async () => {
    await expect(restoringSmall(AbortSignal.abort(new Error("enough")))).rejects.toThrow("enough");
    expect(await exists(target)).toBe(false);
    expect(await descriptors()).toEqual([]);
  });
});

describe.each([
  ["other threads", SIZE],
  ["the calling thread", 0],
])("a request to %s", (_, bytes) => {
  /** Asks for the first two clusters of the full point; with `damaged`, the first one is damaged. */
  async function ask(path: string, options: { readonly damaged: boolean }) {
    const [point] = chain.points;
    if (!point) throw new Error("no point");
    const image = chain.pathOf(point, "vda.qcow2");
    if (options.damaged) {
      await using file = await open(image, "r+");
      await file.write(Buffer.from([0x12]), 0, 1, CLUSTER + 100);
    }
    const digests = await readFile(chain.pathOf(point, "vda.digests"));
    await using threads = new CopyThreads(bytes);
    const geometry = { virtualSize: SIZE, clusterSize: CLUSTER };
    return await threads.ask({
      images: [{ path: image, format: "qcow2", geometry, algorithm: "xxh64" }],
      pieces: [
        {
          image: 0,
          run: { kind: "data", cluster: 0, count: 2, hostOffset: CLUSTER },
          offset: CLUSTER / 2,
          length: CLUSTER,
          to: 4096,
          slot: 0,
        },
      ],
      digests: Uint8Array.from(digests.subarray(80, 96)),
      target: { path, clusterSize: CLUSTER, slots: 2 },
    });
  }

  it("copies parts of clusters to their places, and says which slots hold data", async () => {
    await writeFile(target, "");
    expect(await ask(target, { damaged: false })).toEqual({ stored: Uint8Array.of(1, 1) });
    const wanted = Buffer.concat([Buffer.alloc(4096), Buffer.alloc(CLUSTER, 0x11)]);
    expect((await readFile(target)).equals(wanted)).toBe(true);
  });

  it("writes nothing of a cluster whose digest differs, whatever part of it is wanted", async () => {
    await writeFile(target, "");
    const answer = await ask(target, { damaged: true });
    expect(answer).toMatchObject({ image: 0, damage: { guestOffset: 0, length: CLUSTER } });
    expect(await readFile(target)).toHaveLength(0);
  });

  it("reports damage if the image was changed after it was checked", async () => {
    await writeFile(target, "");
    const [point] = chain.points;
    if (!point) throw new Error("no point");
    await using file = await open(chain.pathOf(point, "vda.qcow2"), "r+");
    await file.write(Buffer.from("QFX"), 0, 3, 0);
    const answer = await ask(target, { damaged: false });
    expect(answer).toMatchObject({ image: 0, damage: { message: expect.stringContaining("magic number") } });
    expect(await readFile(target)).toHaveLength(0);
  });

  it("passes on the file system's error for the target", async (context) => {
    if (process.getuid?.() !== 0) skipUnable(context, "mount", "mounting needs root");
    const small = join(chain.folder, "small");
    await mkdir(small);
    await using _ = await mountSmall(small, 4096);
    const full = join(small, "target");
    await writeFile(full, "");
    await expect(ask(full, { damaged: false })).rejects.toMatchObject({
      code: "ENOSPC",
      details: { path: full },
    });
  });

  it("writes to nothing but a plain file", async () => {
    await expect(ask("/dev/full", { damaged: false })).rejects.toMatchObject({ code: "E_IMAGE_FILE" });
  });

  it("does not create the target", async () => {
    await rm(target, { force: true });
    await expect(ask(target, { damaged: false })).rejects.toMatchObject({
      code: "ENOENT",
      details: { path: target },
    });
    expect(await exists(target)).toBe(false);
  });
});
