import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openExport } from "../../src/backup/export/open-export.js";
import { plan } from "../../src/backup/pull/plan.js";
import { pull } from "../../src/backup/pull/pull.js";
import { RequestWindow } from "../../src/backup/pull/window.js";
import { pullFile } from "../../src/backup/take/pull-file.js";
import { NbdClient, type NbdEvent } from "../../src/nbd/index.js";
import {
  type Folder,
  makeAuthority,
  makeFolder,
  pattern,
  startNbdkit,
  startQemu,
  uriOf,
} from "../nbd/servers.js";
import { freshPaths } from "../support/fresh.js";
import { nbdpullMeasured } from "../support/peak-memory.js";
import { choppedRelay, PieceCollector } from "../support/piece-collector.js";
import { describeWith, SKIP_WITHOUT_ROOT } from "../support/tools.js";

const MiB = 1024 * 1024;
const SIZE = 3 * MiB + 512;
const STRETCHES = [
  { offset: 0, length: 100_001 },
  { offset: 262_144, length: 1 },
  { offset: 300_007, length: MiB },
  { offset: 2 * MiB - 5, length: SIZE - 2 * MiB + 5 },
];

let folder: Folder;
const fresh = freshPaths();
let image: string;
beforeAll(async () => {
  folder = await makeFolder();
  image = join(folder.path, "disk.raw");
  await writeFile(image, pattern(0, SIZE));
});
afterAll(() => folder[Symbol.asyncDispose]());

async function expectPieces(client: NbdClient): Promise<void> {
  const sink = new PieceCollector(SIZE);
  await client.readPieces(STRETCHES, sink);
  expect(sink.fault(...STRETCHES)).toBeUndefined();
  for (const { offset, length } of STRETCHES) {
    const got = sink.bytes.subarray(offset, offset + length);
    expect(got.equals(pattern(offset, length))).toBe(true);
  }
}

describeWith(["nbdkit", "qemu-nbd", "certtool"], "reading in pieces from real servers", () => {
  it.each([
    ["structured replies", []],
    ["simple replies", ["--no-sr"]],
    [
      "blocks of 4096 bytes and small requests",
      [
        "--filter=blocksize-policy",
        "blocksize-minimum=4096",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
      ],
    ],
  ])("works with nbdkit and %s", async (_title, args) => {
    const options = args.filter((arg) => arg.startsWith("-"));
    const parameters = args.filter((arg) => !arg.startsWith("-"));
    // An export with blocks of 4096 bytes can't have a ragged end.
    const padded = [...options, "--filter=truncate", "file", image, "round-up=4096"];
    await using server = await startNbdkit(folder, ...padded, ...parameters);
    await using client = await NbdClient.connect(server.uri);
    await expectPieces(client);
  });

  it("works with qemu-nbd over several connections", async () => {
    await using server = await startQemu(folder, "-r", "-f", "raw", image);
    await using client = await NbdClient.connect(server.uri, { connections: 4 });
    await expect.poll(() => client.connections).toBe(4);
    await Promise.all([expectPieces(client), expectPieces(client), expectPieces(client)]);
  });

  it.each([[[1, 40, 17]], [[5000, 3, 70_000]], [[1_000_000]]])(
    "works over TLS with segments of any size: %j",
    async (sizes) => {
      const authority = await makeAuthority({ path: fresh("") }, "ca");
      await using server = await startQemu(
        folder,
        `--object=tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir=${authority.path}`,
        ...["--tls-creds=tls0", "-r", "-f", "raw", image],
      );
      await using relay = await choppedRelay(folder.path, server.socket, sizes);
      const parameters = `tls-certificates=${authority.path}&tls-hostname=localhost`;
      await using client = await NbdClient.connect(uriOf(relay.path, "", parameters, "nbds"));
      const stretch = sizes.length === 3 && sizes[0] === 1 ? { offset: 1000, length: 200_000 } : undefined;
      if (stretch === undefined) return expectPieces(client);
      const sink = new PieceCollector(SIZE);
      await client.readPieces([stretch], sink);
      expect(sink.fault(stretch)).toBeUndefined();
      expect(sink.bytes.subarray(1000, 201_000).equals(pattern(1000, 200_000))).toBe(true);
    },
    120_000,
  );
});

describeWith(["nbdkit", "qemu-nbd", "qemu-img"], "a pull", () => {
  /** A socket that forwards to `target`, and hangs up after so many bytes. */
  async function cuttingRelay(target: string, bytes: number) {
    const path = join(folder.path, `cut-${Math.random()}.sock`);
    let cuts = 1;
    const server = createServer((client) => {
      const upstream = connect(target);
      let left = bytes;
      for (const one of [client, upstream]) {
        one.on("error", () => {});
        one.on("close", () => [client, upstream].forEach((either) => void either.destroy()));
      }
      client.pipe(upstream);
      upstream.on("data", (some: Buffer) => {
        left -= some.length;
        if (left < 0 && cuts > 0) {
          cuts -= 1;
          client.end(some.subarray(0, some.length / 2));
          upstream.destroy();
        } else client.write(some);
      });
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return { path, [Symbol.asyncDispose]: async () => void server.close() };
  }

  // The first 8 MiB are one request; if that is cut, all of it is read again.
  it.each([
    ["qcow2", 10],
    ["raw", 10],
    ["qcow2", 3],
    ["raw", 3],
  ] as const)("into %s is right if its connection is lost after %i MiB", async (format, carried) => {
    const disk = join(folder.path, "large.raw");
    await writeFile(disk, pattern(0, 24 * MiB));
    await using server = await startQemu(folder, "-r", "-f", "raw", disk);
    await using relay = await cuttingRelay(server.socket, carried * MiB);
    const events: NbdEvent["type"][] = [];
    await using client = await openExport(uriOf(relay.path), undefined, {
      reconnect: { attempts: 3, delayMs: 1, maxDelayMs: 5 },
      onEvent: ({ type }) => events.push(type),
    });
    const imagePath = fresh(`lost.${format}`);
    await pullFile({
      ...{ client, imagePath, format, bitmap: undefined, digests: "xxh64", force: false, sync: false },
      // With more connections, none would carry enough bytes to be cut.
      window: { connections: 2 },
    });
    expect(events).toContain("lost");
    const out = fresh(`lost.${format}.bytes`);
    await execa("qemu-img", ["convert", "-f", format, "-O", "raw", imagePath, out]);
    expect((await readFile(out)).equals(pattern(0, 24 * MiB))).toBe(true);
  });

  describe("its request window", () => {
    async function lanes(
      window: object,
      ...args: string[]
    ): Promise<{ before: number; after: number; most: number }> {
      await using server = await startNbdkit(folder, ...args);
      await using client = await openExport(server.uri, undefined, {});
      const geometry = { virtualSize: client.export.size, clusterSize: 65_536 };
      const pace = new RequestWindow(window, MiB);
      const before = pace.lanes;
      let most = 0;
      let open = 0;
      async function* extents() {
        yield [{ offset: 0, length: geometry.virtualSize, state: "data" as const }];
      }
      await pull({
        source: {
          readPieces: async (stretches, sink, options) => {
            most = Math.max(most, ++open);
            await client.readPieces(stretches, sink, options);
            open -= 1;
          },
        },
        segments: plan(extents(), { geometry, segmentBytes: MiB }),
        into: {
          landing: (segment) => {
            let firstByte: number | undefined;
            return {
              ranges: segment.runs.map(({ cluster, count }) => {
                return { offset: cluster * 65_536, end: (cluster + count) * 65_536, slot: 0 };
              }),
              get firstByte() {
                return firstByte;
              },
              data: () => {
                firstByte ??= performance.now();
              },
              zeroes: () => {},
              outcome: () => segment.index,
            };
          },
          capacity: async () => {},
          record: () => {},
          complete: async () => {},
        },
        window: pace,
        requestSizes: { readThrough: 0, mostRead: MiB / 2 },
      });
      return { before, after: pace.lanes, most };
    }

    // A busy machine can take longer for four answers than a network does.
    it("stays minimal over a Unix socket", { retry: 3 }, async () => {
      const { before, after, most } = await lanes({}, "memory", "512M");
      expect([before, after, most]).toEqual([1, 4, 4]);
    });

    it("grows with a distant server", async () => {
      const { before, after, most } = await lanes({}, "--filter=delay", "pattern", "192M", "delay-read=30ms");
      expect(after).toBeGreaterThanOrEqual(2 * before);
      expect(most).toBeGreaterThan(before);
      expect(most).toBeLessThanOrEqual(after);
    });

    it("keeps to the given bytes in flight, however far the server is", async () => {
      const window = { inFlight: 3 * MiB };
      const { after, most } = await lanes(window, "--filter=delay", "pattern", "64M", "delay-read=20ms");
      expect([after, most]).toEqual([3, 3]);
    });
  });

  it.skipIf(SKIP_WITHOUT_ROOT).each(["qcow2", "raw"] as const)(
    "into %s with digests leaves nothing if the disk is full (needs root)",
    async (format) => {
      const small = fresh("small");
      await mkdir(small);
      await execa("mount", ["-t", "tmpfs", "-o", "size=5M", "tmpfs", small]);
      try {
        await using server = await startNbdkit(folder, "pattern", "64M");
        await using client = await openExport(server.uri, undefined, {});
        const pulling = pullFile({
          ...{ client, imagePath: join(small, "x"), format, bitmap: undefined },
          ...{ digests: "sha256", force: false, sync: false },
        });
        await expect(pulling).rejects.toMatchObject({ code: "ENOSPC" });
        expect(await readdir(small)).toEqual([]);
        // It was the file that failed, so the connection is still good.
        const target = Buffer.alloc(MiB);
        await client.read(0, target);
        expect(target.equals(pattern(0, MiB))).toBe(true);
      } finally {
        await execa("umount", [small]);
      }
    },
  );

  it("needs no more memory for more bytes in flight", async () => {
    await using server = await startNbdkit(folder, "--filter=delay", "pattern", "256M", "delay-read=2ms");
    const peak = async (inFlight: string): Promise<number> => {
      const target = fresh(`${inFlight}.raw`);
      const args = ["pull", server.uri, target, "--in-flight", inFlight, "--no-fsync"];
      return (await nbdpullMeasured(...args)).peakBytes;
    };
    const [few, many] = [await peak("4M"), await peak("64M")];
    expect(few).toBeGreaterThan(10 * MiB);
    expect(many - few).toBeLessThan(24 * MiB);
  });
});
