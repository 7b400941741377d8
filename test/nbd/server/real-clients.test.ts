import { randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MemoryDisk, NbdServer, type NbdServerEvent } from "../../../src/nbd/server/index.js";
import { outputOf, runTool, temporaryDirectory, testWith } from "./tools.js";

const KIB = 1024;
const PAGE = 64 * KIB;
/** Not a multiple of anything that clients expect. */
const SIZE = 40 * PAGE + 12_345;

/** Pages 0, 1 and 3 are data, 2 is zero, and the rest are holes except the short last one. */
function writtenDisk(): MemoryDisk {
  const disk = new MemoryDisk({ size: SIZE });
  disk.write(0, randomBytes(2 * PAGE));
  disk.writeZeroes(2 * PAGE, PAGE);
  disk.write(3 * PAGE, randomBytes(PAGE));
  disk.write(SIZE - 345, randomBytes(345));
  disk.startBitmap("since-monday");
  disk.write(PAGE, randomBytes(5));
  disk.discard(20 * PAGE, 2 * PAGE);
  disk.startBitmap("fine", 4 * KIB);
  disk.write(3 * PAGE + 5000, randomBytes(10));
  return disk;
}

interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

describe("real clients on a frozen memory disk", () => {
  const disk = writtenDisk();
  const point = disk.freeze();
  const expected = disk.read(0, SIZE);
  const events: NbdServerEvent[] = [];
  let directory: Awaited<ReturnType<typeof temporaryDirectory>>;
  let server: NbdServer;
  let uri: string;

  beforeAll(async () => {
    directory = await temporaryDirectory();
    server = await NbdServer.listen({
      exports: new Map([
        ["disk", point],
        ["Fäßchen/1 & 2", { ...point, description: "the same again" }],
      ]),
      address: { path: join(directory.path, "nbd socket") },
      onEvent: (event) => events.push(event),
    });
    uri = server.uri("disk");
    // Later changes to the disk must not affect the served point.
    disk.write(0, randomBytes(SIZE));
  });
  afterAll(async () => {
    await server.close();
    await directory[Symbol.asyncDispose]();
  });

  const map = async (context: string): Promise<Extent[]> => {
    const entries: Extent[] = JSON.parse(await outputOf("nbdinfo", "--json", `--map=${context}`, uri));
    return entries.map(({ offset, length, type }) => ({ offset, length, type }));
  };

  testWith("nbdinfo")("nbdinfo finds size, flags, block sizes and contexts", async () => {
    const info = JSON.parse(await outputOf("nbdinfo", "--json", uri));
    expect(info).toMatchObject({ protocol: "newstyle-fixed", structured: true });
    expect(info.exports[0]).toMatchObject({
      "export-name": "disk",
      "export-size": SIZE,
      contexts: ["base:allocation", "qemu:dirty-bitmap:since-monday", "qemu:dirty-bitmap:fine"],
      is_read_only: true,
      can_df: true,
      can_multi_conn: true,
      can_flush: false,
      block_size_minimum: 1,
      block_size_preferred: 4096,
      block_size_maximum: 32 * KIB * KIB,
    });
  });

  testWith("nbdinfo")("nbdinfo lists the exports with their descriptions", async () => {
    const { exports } = JSON.parse(await outputOf("nbdinfo", "--json", "--list", uri));
    expect(exports).toMatchObject([
      { "export-name": "disk" },
      { "export-name": "Fäßchen/1 & 2", description: "the same again" },
    ]);
  });

  testWith("nbdinfo")("an export with an awkward name is found by its URI", async () => {
    expect(await outputOf("nbdinfo", "--size", server.uri("Fäßchen/1 & 2"))).toBe(`${SIZE}\n`);
  });

  testWith("nbdinfo")("nbdinfo reports an unknown export", async () => {
    const { code, stderr } = await runTool("nbdinfo", server.uri("nothing"));
    expect(code).toBe(1);
    expect(stderr).toContain("No such file or directory for export: nothing");
  });

  testWith("nbdinfo")("nbdinfo maps the allocation", async () => {
    expect(await map("base:allocation")).toEqual([
      { offset: 0, length: 2 * PAGE, type: 0 },
      { offset: 2 * PAGE, length: PAGE, type: 2 },
      { offset: 3 * PAGE, length: PAGE, type: 0 },
      { offset: 4 * PAGE, length: 36 * PAGE, type: 3 },
      { offset: 40 * PAGE, length: 12_345, type: 0 },
    ]);
  });

  testWith("nbdinfo")("nbdinfo maps dirty bitmaps of different granularity", async () => {
    const since = await map("qemu:dirty-bitmap:since-monday");
    expect(since.filter(({ type }) => type === 1)).toEqual([
      { offset: PAGE, length: PAGE, type: 1 },
      { offset: 3 * PAGE, length: PAGE, type: 1 },
      { offset: 20 * PAGE, length: 2 * PAGE, type: 1 },
    ]);
    const fine = await map("qemu:dirty-bitmap:fine");
    expect(fine).toEqual([
      { offset: 0, length: 3 * PAGE + 4 * KIB, type: 0 },
      { offset: 3 * PAGE + 4 * KIB, length: 4 * KIB, type: 1 },
      { offset: 3 * PAGE + 8 * KIB, length: SIZE - 3 * PAGE - 8 * KIB, type: 0 },
    ]);
  });

  testWith("nbdcopy")("nbdcopy over several connections copies every byte", async () => {
    const copy = join(directory.path, "nbdcopy.raw");
    const seen = events.length;
    await outputOf("nbdcopy", "--connections=4", "--threads=4", "--request-size=65536", uri, copy);
    expect(Buffer.compare(await readFile(copy), expected)).toBe(0);
    expect(events.slice(seen).filter(({ type }) => type === "export-opened")).toHaveLength(4);
  });

  testWith("nbdcopy")("nbdcopy with a single thread and synchronous reads copies every byte", async () => {
    const copy = join(directory.path, "nbdcopy-sync.raw");
    await outputOf("nbdcopy", "--synchronous", "--allocated", uri, copy);
    expect(Buffer.compare(await readFile(copy), expected)).toBe(0);
  });

  testWith("qemu-img")("qemu-img convert and compare agree with the disk", async () => {
    const original = join(directory.path, "original.raw");
    const copy = join(directory.path, "convert.raw");
    await writeFile(original, expected);
    await outputOf("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy);
    // QEMU rounds sizes up to whole sectors, in its maps too.
    expect(Buffer.compare((await readFile(copy)).subarray(0, SIZE), expected)).toBe(0);
    expect(await outputOf("qemu-img", "compare", "-f", "raw", "-F", "raw", original, uri)).toContain(
      "identical",
    );
  });

  testWith("qemu-img")("qemu-img map sees holes, zeroes and data", async () => {
    const entries: { start: number; zero: boolean; data: boolean }[] = JSON.parse(
      await outputOf("qemu-img", "map", "--output=json", "-f", "raw", uri),
    );
    const inside = entries.filter(({ start }) => start < SIZE);
    expect(inside.map(({ start, zero, data }) => ({ start, zero, data }))).toEqual([
      { start: 0, zero: false, data: true },
      { start: 2 * PAGE, zero: true, data: true },
      { start: 3 * PAGE, zero: false, data: true },
      { start: 4 * PAGE, zero: true, data: false },
      { start: 40 * PAGE, zero: false, data: true },
    ]);
  });

  testWith("qemu-img")("qemu-img maps a dirty bitmap as if it were the allocation", async () => {
    const options = `driver=nbd,server.type=unix,server.path=${join(directory.path, "nbd socket")},export=disk`;
    const entries: { start: number; data: boolean }[] = JSON.parse(
      await outputOf(
        "qemu-img",
        "map",
        "--output=json",
        "--image-opts",
        `${options},x-dirty-bitmap=qemu:dirty-bitmap:since-monday`,
      ),
    );
    const dirty = entries.filter(({ start, data }) => start < SIZE && !data);
    expect(dirty.map(({ start }) => start)).toEqual([PAGE, 3 * PAGE, 20 * PAGE]);
  });

  testWith("qemu-io")("qemu-io verifies zeroes, and may not write", async () => {
    const command = `read -P 0 ${2 * PAGE} ${PAGE}`;
    expect(await outputOf("qemu-io", "-r", "-f", "raw", "-c", command, uri)).not.toContain("failed");
    const { code, stderr } = await runTool("qemu-io", "-f", "raw", "-c", command, uri);
    expect(code).toBe(1);
    expect(stderr).toContain("Permission denied");
  });

  testWith("nbdcopy")("a server on TCP accepts requests of the largest size", async () => {
    const large = new MemoryDisk({ size: 80 * KIB * KIB });
    large.write(KIB, randomBytes(70 * KIB * KIB));
    await using tcp = await NbdServer.listen({
      exports: new Map([["", large.freeze()]]),
      address: { host: "127.0.0.1", port: 0 },
    });
    expect(tcp.uri("")).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/$/);
    const copy = join(directory.path, "large.raw");
    await outputOf("nbdcopy", `--request-size=${32 * KIB * KIB}`, tcp.uri(""), copy);
    expect(Buffer.compare(await readFile(copy), large.read(0, large.size))).toBe(0);
  });

  test("every connection so far ended with a proper goodbye", async () => {
    await expect
      .poll(() => events.filter(({ type }) => type === "disconnected").length)
      .toBe(events.filter(({ type }) => type === "connected").length);
    const faults = events.filter((event) => event.type === "disconnected" && event.error !== undefined);
    expect(faults).toEqual([]);
  });
});
