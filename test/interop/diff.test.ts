/** Where two points differ, and what is stored: judged by the disks that restores and servers give. */
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { startServing } from "../support/serving.js";

const CLUSTER = 64 * 1024;
const SIZE = 40 * CLUSTER + 512;

let chain: MemoryChain;
let ids: readonly string[];
/**
 * A full point, two increments, a full one, one without digests on it. Cluster 3 of the third is again as it
 * was.
 */
beforeAll(async () => {
  chain = await MemoryChain.start(SIZE);
  const { disk } = chain;
  const write = (cluster: number, length: number, byte: number): void =>
    disk.write(cluster * CLUSTER, Buffer.alloc(length, byte));
  write(0, 30 * CLUSTER, 0x11);
  disk.write(SIZE - 512, Buffer.alloc(512, 0x12));
  await chain.take({ digests: "sha256" });
  write(3, CLUSTER, 0x21);
  write(5, 4096, 0x22);
  disk.writeZeroes(7 * CLUSTER, 3 * CLUSTER);
  await chain.take({ digests: "sha256" });
  write(3, CLUSTER, 0x11);
  write(33, 2 * CLUSTER, 0x31);
  await chain.take({ digests: "sha256" });
  disk.write(SIZE - 512, Buffer.alloc(512, 0x13));
  await chain.take({ digests: "sha256", full: true });
  write(20, 512, 0x41);
  await chain.take({ digests: undefined });
  ids = chain.points.map(({ id }) => id);
});
afterAll(async () => {
  await chain?.[Symbol.asyncDispose]();
});

interface Row {
  readonly disk: string;
  readonly offset: number;
  readonly length: number;
  readonly type: number;
  readonly description: string;
}

const idOf = (point: number): string => ids[point] ?? "";

async function diff(from: number, to: number): Promise<Row[]> {
  const args = [chain.repository.path, MemoryChain.domain, idOf(from), idOf(to)];
  const ran = await nbdpull("diff", ...args, "--json");
  expect([ran.code, ran.stderr]).toEqual([0, ""]);
  return ran.json() as Row[];
}

describe("nbdpull diff", () => {
  it.each([
    [0, 2],
    [3, 1],
    [3, 4],
  ])("of points %i and %i tells all that differs, and no cluster that doesn't", async (from, to) => {
    const rows = await diff(from, to);
    const [one, other] = [await chain.contentOf(idOf(from)), await chain.contentOf(idOf(to))];
    for (const { offset, length } of rows) {
      for (let at = offset; at < offset + length; at += CLUSTER) {
        const end = Math.min(at + CLUSTER, offset + length);
        expect([at, one.subarray(at, end).equals(other.subarray(at, end))]).toEqual([at, false]);
      }
    }
    // With these extents copied from the second, the first is the second, and another program says so.
    const patched = Buffer.from(one);
    for (const { offset, length } of rows) other.copy(patched, offset, offset, offset + length);
    const file = join(chain.folder, "patched.raw");
    await writeFile(file, patched);
    await using served = await startServing(chain.repository.path, "--at", idOf(to));
    const raws = ["-f", "raw", "-F", "raw"];
    expect(await qemuImg("compare", ...raws, file, served.uris[0] ?? "")).toContain("Images are identical.");
    const { stdout } = await execa("nbdinfo", ["--map", "--json", served.uris[0] ?? ""]);
    const map = JSON.parse(stdout) as Row[];
    for (const { offset, length, type, description } of rows) {
      const there = map.find((row) => row.offset <= offset && offset + length <= row.offset + row.length);
      expect(there).toMatchObject({ type, description });
    }
  });

  it("sums up, takes times and beginnings of ids, and names what isn't there", async () => {
    const guest = MemoryChain.domain;
    const run = (...args: readonly string[]) => nbdpull("diff", chain.repository.path, guest, ...args);
    const sum = await run(idOf(0), idOf(1));
    expect(sum.stdout).toMatch(/\nvda: 320 KiB in 3 extents, 192 KiB of it zeroes now \(327680 bytes\)$/);
    expect((await run("latest", idOf(4))).stdout).toBe("vda: no difference");
    expect((await run(idOf(0), "latest", "--disk", "vdb")).code).toBe(4);
    expect((await run(idOf(0), "2001-01-01")).code).toBe(4);
    await using copy = await chain.copy();
    await rm(copy.pathOf(chain.points[0] as never, "vda.qcow2"));
    const broken = await nbdpull("diff", copy.repository.path, guest, idOf(1), idOf(3), "--json");
    expect([broken.code, broken.json()]).toMatchObject([3, { error: { code: "E_DAMAGED", point: idOf(0) } }]);
  });
});

describe("nbdpull stats", () => {
  it("adds up what the manifests say", async () => {
    const { json } = await nbdpull("stats", chain.repository.path, MemoryChain.domain, "--json");
    const stored = chain.points
      .flatMap(({ disks }) => disks)
      .reduce((sum, disk) => sum + disk.storedBytes, 0);
    const figures = {
      ...{ points: 5, virtualBytes: SIZE, logicalBytes: 5 * SIZE, storedBytes: stored },
      ...{ ratio: (5 * SIZE) / stored, growthPerDay: null, changedPerDay: null },
    };
    expect(json()).toEqual({
      version: 1,
      domains: [{ domain: "guest", folder: "guest", uuid: null, ...figures }],
      totals: { domains: 1, ...figures },
    });
    expect((await nbdpull("stats", chain.repository.path, "nobody")).code).toBe(4);
  });
});

describe("nbdpull points", () => {
  it("prints a table as wide as the terminal, a line a domain where there are several", async () => {
    const one = await nbdpull("points", chain.repository.path);
    const lines = one.stdout.split("\n");
    expect(lines[0]).toMatch(/^POINT +MADE +LEVEL +CHANGED +STORED +CHAIN +RESTORABLE$/);
    expect(lines[2]).toMatch(new RegExp(`^${idOf(1)}  .*  incremental +320 KiB .* 2  yes$`));
    expect(lines.at(-1)).toMatch(/^guest: 5 points, .* stored; the newest is based on 1 of the others$/);
    await using copy = await chain.copy();
    const name = `a-${"long".repeat(30)}-name`;
    await copy.take({ full: true, domain: { name, uuid: null } });
    const args = ["points", copy.repository.path];
    const all = (await nbdpull(...args)).stdout.split("\n");
    expect(all).toHaveLength(4);
    expect(all[3]).toMatch(/^together +6 /);
    // In a terminal of 60 columns, which script makes.
    const program = join(import.meta.dirname, "../../dist/bin/nbdpull.js");
    const command = `stty cols 60; ${process.execPath} ${program} ${args.join(" ")}`;
    const { stdout } = await execa("script", ["-qec", command, "/dev/null"], { env: { NO_COLOR: "1" } });
    const narrow = stdout.replaceAll("\r", "").trimEnd().split("\n");
    expect(narrow).toHaveLength(4);
    for (const line of narrow) expect(line.length).toBeLessThanOrEqual(60);
    expect(narrow[1]).toMatch(/^a-long[long]*… +1 /);
  });
});
