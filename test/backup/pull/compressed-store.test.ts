import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { UsageError } from "../../../src/backup/base/errors.js";
import { CompressThreads } from "../../../src/backup/compress/compress-threads.js";
import { type ByteSource, openExport } from "../../../src/backup/export/open-export.js";
import { NewFiles } from "../../../src/backup/host/new-files.js";
import { CompressedStore } from "../../../src/backup/pull/compressed-store.js";
import { assertCompressible } from "../../../src/backup/pull/compressible.js";
import { plan } from "../../../src/backup/pull/plan.js";
import { pull } from "../../../src/backup/pull/pull.js";
import { pullImage } from "../../../src/backup/pull/pull-image.js";
import type { Segment } from "../../../src/backup/pull/segment.js";
import { RequestWindow } from "../../../src/backup/pull/window.js";
import { pullFile } from "../../../src/backup/take/pull-file.js";
import { takePoint } from "../../../src/backup/take/take-point.js";
import { parseNbdUri } from "../../../src/nbd/index.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { noise } from "../../support/noise.js";
import { assertSound, guestBytes, scratch } from "../image/support.js";

const KiB = 1024;
const CLUSTER = 64 * KiB;

describe("a compressed image with very few buffers", () => {
  const geometry = { virtualSize: 64 * CLUSTER, clusterSize: CLUSTER };
  const disk = Buffer.alloc(geometry.virtualSize);
  for (let at = 0; at < disk.length; at += CLUSTER) disk.fill(`cluster ${at} `, at, at + CLUSTER);
  noise(4 * CLUSTER).copy(disk, 9 * CLUSTER);
  disk.fill(0, 20 * CLUSTER, 23 * CLUSTER);

  async function* segments(): AsyncGenerator<Segment> {
    yield* plan(whole(), { geometry, segmentBytes: CLUSTER });
  }
  async function* whole() {
    yield [{ offset: 0, length: geometry.virtualSize, state: "data" as const }];
  }

  /** Answers after arbitrary delays, and so out of order. */
  function moody(fail?: (offset: number) => void): ByteSource {
    return {
      async readPieces(stretches, sink, { signal }) {
        for (const { offset, length } of stretches) {
          await sleep(((offset / CLUSTER) * 7) % 13);
          signal.throwIfAborted();
          fail?.(offset);
          sink.data(offset, disk.subarray(offset, offset + length));
        }
      },
    };
  }

  const segmentBytes = CLUSTER;
  const reading = { readThrough: 0, mostRead: segmentBytes };
  const pace = (): RequestWindow => new RequestWindow({ inFlight: 32 * CLUSTER }, segmentBytes);

  it("gets everything in order, however late the first segment is", async () => {
    const at = await scratch();
    await using files = new NewFiles();
    await using store = await CompressedStore.create(
      {
        path: at("disk.qcow2"),
        geometry,
        complete: true,
        segmentBytes,
        digests: { path: at("disk.digests"), algorithm: "xxh64" },
        compress: { method: "deflate", bufferBytes: 3 * CLUSTER },
      },
      files,
    );
    await pull({ into: store, source: moody(), segments: segments(), window: pace(), requestSizes: reading });
    const { storedBytes, digestsSha256 } = await store.finish({ sync: false });
    await files.close();
    files.keep();
    expect(store.dataBytes).toBe(61 * CLUSTER);
    expect(storedBytes).toBeGreaterThan(4 * CLUSTER);
    expect(storedBytes).toBeLessThan(5 * CLUSTER);
    expect(digestsSha256).toMatch(/^[0-9a-f]{64}$/);
    await assertSound(at("disk.qcow2"));
    expect((await guestBytes(at("disk.qcow2"))).equals(disk)).toBe(true);
  });

  it.each([0, 5, 63])("fails with the reason if segment %i cannot be read", async (bad) => {
    const at = await scratch();
    await using files = new NewFiles();
    const options = { path: at("x.qcow2"), geometry, complete: true, segmentBytes } as const;
    const compress = { method: "deflate", bufferBytes: 3 * CLUSTER } as const;
    await using store = await CompressedStore.create({ ...options, compress }, files);
    const source = moody((offset) => {
      if (offset === bad * CLUSTER) throw new Error("no such bytes");
    });
    const filled = pull({ into: store, source, segments: segments(), window: pace(), requestSizes: reading });
    await expect(filled).rejects.toThrow("no such bytes");
  });

  it("fails with the signal's reason while lanes wait for buffers", async () => {
    const at = await scratch();
    await using files = new NewFiles();
    const options = { path: at("x.qcow2"), geometry, complete: true, segmentBytes } as const;
    const compress = { method: "deflate", bufferBytes: 3 * CLUSTER } as const;
    await using store = await CompressedStore.create({ ...options, compress }, files);
    const stop = new AbortController();
    const source: ByteSource = {
      readPieces: (_stretches, _sink, { signal }) => sleep(60_000, undefined, { signal }),
    };
    const { signal } = stop;
    const filled = pull({
      into: store,
      source,
      segments: segments(),
      window: pace(),
      requestSizes: reading,
      signal,
    });
    setTimeout(() => stop.abort(new Error("enough")), 30);
    await expect(filled).rejects.toThrow("enough");
  });
});

describe("a compressed pull", () => {
  const SIZE = 96 * CLUSTER + 512;
  let chain: MemoryChain;
  beforeEach(async () => {
    chain = await MemoryChain.start(SIZE);
    chain.disk.write(0, Buffer.alloc(90 * CLUSTER, "text "));
    chain.disk.write(SIZE - 700, Buffer.alloc(700, 0x12));
    chain.show();
  });
  afterEach(async () => {
    await chain[Symbol.asyncDispose]();
  });
  const left = async (): Promise<string[]> =>
    (await readdir(chain.folder)).filter((name) => !["nbd.sock", "repo", "worker.cjs"].includes(name));

  /** Threads that run `body` when the first job comes. */
  async function dying(body: string): Promise<CompressThreads> {
    const path = join(chain.folder, "worker.cjs");
    await writeFile(path, `require("node:worker_threads").parentPort.once("message", () => { ${body} });`);
    return new CompressThreads({ path });
  }

  it.each([
    ["throws", "throw new Error('out of luck')"],
    ["ends", "process.exit(7)"],
  ])("fails with E_CLUSTER_WORKER and leaves nothing when its thread %s", async (_title, body) => {
    await using workers = await dying(body);
    await using client = await openExport(chain.uri, undefined, {});
    const pulled = pullImage({
      client,
      imagePath: join(chain.folder, "x.qcow2"),
      format: "qcow2",
      digests: { path: join(chain.folder, "x.digests"), algorithm: "xxh64" },
      compress: { method: "deflate", workers },
      window: { requestSize: CLUSTER },
      sync: false,
    });
    await expect(pulled).rejects.toMatchObject({ code: "E_CLUSTER_WORKER" });
    expect(await left()).toEqual([]);
  });

  it("makes the same digests as an uncompressed one", async () => {
    for (const digests of ["xxh64", "sha256"] as const) {
      const results = [];
      for (const [name, compress] of [
        ["plain", undefined],
        ["packed", "deflate"],
      ] as const) {
        await using client = await openExport(chain.uri, undefined, {});
        const imagePath = join(chain.folder, `${name}-${digests}.qcow2`);
        const options = { client, imagePath, digests, compress, format: "qcow2", force: false } as const;
        const {
          seconds: _,
          requests: __,
          storedBytes,
          ...rest
        } = await pullFile({ ...options, sync: false });
        results.push({ rest, file: await readFile(`${imagePath}.digests`) });
        if (compress) expect(storedBytes).toBeLessThan(rest.dataBytes / 10);
      }
      expect(results[1]).toEqual(results[0]);
    }
  });

  it("works with requests of any size", async () => {
    for (const requestSize of [512, CLUSTER, 3 * CLUSTER + 512, 64 * 1024 * KiB]) {
      await using client = await openExport(chain.uri, undefined, {});
      const imagePath = join(chain.folder, `${requestSize}.qcow2`);
      const window = { requestSize, inFlight: 64 * 1024 * KiB };
      const options = { client, imagePath, compress: "deflate", format: "qcow2", window } as const;
      await pullFile({ ...options, force: false, sync: false });
      await assertSound(imagePath);
      const guest = await guestBytes(imagePath);
      expect(guest.subarray(0, 90 * CLUSTER).equals(Buffer.alloc(90 * CLUSTER, "text "))).toBe(true);
      expect(guest.subarray(SIZE - 700, SIZE).equals(Buffer.alloc(700, 0x12))).toBe(true);
    }
  });

  it("compresses several disks of a point alike", async () => {
    const disks = Array.from({ length: 9 }, (_, i) => ({ name: `vd${i}`, address: parseNbdUri(chain.uri) }));
    const { manifest, folder } = await takePoint({
      repository: chain.repository,
      domain: { name: "nine", uuid: null },
      disks,
      checkpoint: null,
      format: "qcow2",
      digests: "xxh64",
      compress: "deflate",
      sync: false,
      tool: "test",
      connect: {},
      confirm: async () => undefined,
    });
    expect(new Set(manifest.disks.map((disk) => disk.storedBytes)).size).toBe(1);
    for (const { file } of manifest.disks) await assertSound(join(folder, file));
  });

  it("is refused for a raw image", async () => {
    expect(() => assertCompressible("raw", "deflate")).toThrow(UsageError);
    await using client = await openExport(chain.uri, undefined, {});
    const imagePath = join(chain.folder, "x.raw");
    const options = { client, imagePath, format: "raw", sync: false } as const;
    const refused = { name: "UsageError", code: "E_COMPRESS_FORMAT" };
    const asImage = pullImage({ ...options, compress: { method: "deflate" } });
    await expect(asImage).rejects.toMatchObject(refused);
    await expect(pullFile({ ...options, force: false, compress: "deflate" })).rejects.toMatchObject(refused);
    await expect(chain.take({ format: "raw", compress: "deflate" })).rejects.toMatchObject(refused);
    expect(await left()).toEqual([]);
  });
});
