import { randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { MemoryDisk, NbdServer, type NbdServerEvent } from "../../src/nbd/index.js";
import { type Folder, makeFolder } from "../nbd/servers.js";
import { describeWithNewerSuite, newer, newerMap, outputOfNewer } from "../support/newer-suite.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const TiB = 1024 * GiB;
const ALLOCATION = "base:allocation";
const DIRTY = "qemu:dirty-bitmap:b0";

let folder: Folder;
const at = (name: string): string => join(folder.path, name);

describeWithNewerSuite("newer clients and the built-in server", () => {
  const SIZE = 6 * TiB + 12_345;
  const PAGE = 64 * MiB;
  const disk = new MemoryDisk({ size: SIZE, pageSize: PAGE });
  const events: NbdServerEvent[] = [];
  let server: NbdServer;
  let small: MemoryDisk;

  beforeAll(async () => {
    folder = await makeFolder();
    disk.write(5 * TiB + 7, randomBytes(1000));
    disk.startBitmap("b0", PAGE);
    disk.writeZeroes(4 * GiB, 2 * PAGE);
    disk.write(SIZE - 10, randomBytes(10));
    small = new MemoryDisk({ size: 20 * MiB + 12_345 });
    small.write(MiB, randomBytes(7 * MiB));
    small.writeZeroes(2 * MiB, MiB);
    small.write(20 * MiB, randomBytes(345));
    server = await NbdServer.listen({
      exports: new Map([
        ["huge", { ...disk.freeze(), description: "terabytes" }],
        ["small", small.freeze()],
      ]),
      address: { path: at("built-in.sock") },
      onEvent: (event) => events.push(event),
    });
  });
  afterAll(async () => {
    await server.close();
    await folder[Symbol.asyncDispose]();
  });

  it("speaks extended headers with nbdinfo", async () => {
    expect(await outputOfNewer("nbdinfo", server.uri("huge"))).toContain("using extended packets");
    const info = JSON.parse(await outputOfNewer("nbdinfo", "--json", server.uri("huge"))) as unknown;
    expect(info).toMatchObject({
      protocol: "newstyle-fixed",
      exports: [
        {
          "export-name": "huge",
          "export-size": SIZE,
          description: "terabytes",
          contexts: [ALLOCATION, DIRTY],
          is_read_only: true,
          can_df: true,
          can_block_status_payload: false,
          can_multi_conn: true,
        },
      ],
    });
    const listed = JSON.parse(
      await outputOfNewer("nbdinfo", "--json", "--list", server.uri("small")),
    ) as unknown;
    expect(listed).toMatchObject({ exports: [{ "export-name": "huge" }, { "export-name": "small" }] });
  });

  it("describes extents that don't fit 32 bits", async () => {
    const last = Math.floor(SIZE / PAGE) * PAGE;
    expect(await newerMap(server.uri("huge"))).toEqual([
      { offset: 0, length: 4 * GiB, type: 3 },
      { offset: 4 * GiB, length: 2 * PAGE, type: 2 },
      { offset: 4 * GiB + 2 * PAGE, length: 5 * TiB - 4 * GiB - 2 * PAGE, type: 3 },
      { offset: 5 * TiB, length: PAGE, type: 0 },
      { offset: 5 * TiB + PAGE, length: last - 5 * TiB - PAGE, type: 3 },
      { offset: last, length: SIZE - last, type: 0 },
    ]);
    expect(await newerMap(server.uri("huge"), DIRTY)).toEqual([
      { offset: 0, length: 4 * GiB, type: 0 },
      { offset: 4 * GiB, length: 2 * PAGE, type: 1 },
      { offset: 4 * GiB + 2 * PAGE, length: last - 4 * GiB - 2 * PAGE, type: 0 },
      { offset: last, length: SIZE - last, type: 1 },
    ]);
  });

  it("is copied by nbdcopy over several connections", async () => {
    const copy = at("nbdcopy.raw");
    const args = ["--connections=4", "--threads=4", "--request-size=65536"];
    await outputOfNewer("nbdcopy", ...args, server.uri("small"), copy);
    expect((await readFile(copy)).equals(small.read(0, small.size))).toBe(true);
    await outputOfNewer("nbdcopy", "--synchronous", server.uri("small"), copy);
    expect((await readFile(copy)).equals(small.read(0, small.size))).toBe(true);
  });

  it("is converted, compared and mapped by qemu-img", async () => {
    const copy = at("convert.qcow2");
    const uri = server.uri("small");
    await outputOfNewer("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, copy);
    await outputOfNewer("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, copy);
    await writeFile(at("small.raw"), small.read(0, small.size));
    await outputOfNewer("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, at("small.raw"));

    const shown = await outputOfNewer("qemu-img", "map", "--output=json", "-f", "raw", server.uri("huge"));
    const entries = JSON.parse(shown) as { start: number; zero: boolean; data: boolean }[];
    expect(entries.filter(({ zero }) => !zero).map(({ start }) => start)).toEqual([
      5 * TiB,
      Math.floor(SIZE / PAGE) * PAGE,
    ]);
  });

  it("lets nobody write", async () => {
    const open = execa(newer("qemu-io"), ["-f", "raw", "-c", "write 0 512", server.uri("small")]);
    await expect(open).rejects.toThrow(/Permission denied|read-only/i);
  });

  it("speaks TLS with a pre-shared key", async () => {
    const key = randomBytes(32);
    await writeFile(at("built-in.psk"), `alice:${key.toString("hex")}\n`);
    await using secure = await NbdServer.listen({
      exports: new Map([["", small.freeze()]]),
      address: { path: at("secure.sock") },
      tls: { presharedKeys: new Map([["alice", key]]) },
    });
    expect(secure.uri("")).toContain("nbds+unix:");
    const uri = `nbds+unix://alice@/?socket=${at("secure.sock")}&tls-psk-file=${at("built-in.psk")}`;
    expect(await outputOfNewer("nbdinfo", uri)).toContain("with TLS, using extended packets");
    await outputOfNewer("nbdcopy", uri, at("secure.raw"));
    expect((await readFile(at("secure.raw"))).equals(small.read(0, small.size))).toBe(true);
  });

  it("saw every client disconnect properly, and spoke extended headers only", async () => {
    const count = (type: NbdServerEvent["type"]): number =>
      events.filter((event) => event.type === type).length;
    await expect.poll(() => count("disconnected")).toBe(count("connected"));
    const faults = events.filter((event) => event.type === "disconnected" && event.error !== undefined);
    expect(faults).toEqual([]);
    const modes = events.flatMap((event) => (event.type === "export-opened" ? [event.mode] : []));
    expect(new Set(modes)).toEqual(new Set(["extended"]));
  });
});
