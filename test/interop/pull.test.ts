import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { nbdpull } from "../support/nbdpull.js";
import { createImage, qemuImg, qemuIo, startQemuNbd } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-interop-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});
const at = (name: string): string => join(folder, name);

interface MapLine {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
  readonly description: string;
}

async function nbdinfoMap(uri: string, context = "base:allocation"): Promise<MapLine[]> {
  const { stdout } = await execa("nbdinfo", [`--map=${context}`, "--json", uri]);
  return JSON.parse(stdout) as MapLine[];
}

function bytesOf(map: readonly MapLine[], type: number): number {
  return map.filter((line) => line.type === type).reduce((sum, { length }) => sum + length, 0);
}

/** Makes an image whose bitmap marks what changed since `base.raw`, a copy of its earlier content. */
async function imageWithBitmap(
  options: { readonly size: number; readonly granularity?: number; readonly clusterSize?: number },
  before: readonly string[],
  since: readonly string[],
): Promise<string> {
  const image = at("disk.qcow2");
  await createImage(image, {
    size: options.size,
    options: { cluster_size: String(options.clusterSize ?? 65_536) },
  });
  if (before.length > 0) await qemuIo(image, "qcow2", ...before);
  await qemuImg("convert", "-f", "qcow2", "-O", "raw", image, at("base.raw"));
  const granularity = options.granularity === undefined ? [] : ["-g", String(options.granularity)];
  await qemuImg("bitmap", "--add", ...granularity, "-f", "qcow2", image, "b0");
  if (since.length > 0) await qemuIo(image, "qcow2", ...since);
  return image;
}

const CASES: Record<string, { size: number; granularity?: number; before: string[]; since: string[] }> = {
  "nothing written": { size: 8 * MiB, before: ["write -P 1 0 2M"], since: [] },
  "fragmented writes": {
    size: 64 * MiB,
    before: ["write -P 1 0 64M"],
    since: Array.from({ length: 100 }, (_, i) => `write -P ${i + 2} ${i * 5 * 131_072 + 512} 512`),
  },
  "zeroed and discarded": {
    size: 16 * MiB,
    before: ["write -P 1 0 16M"],
    since: [
      "write -z 1M 1M",
      "write -z -u 3M 1536k",
      "discard 6M 2M",
      "write -P 3 7M 64k",
      "write -z 7208960 512",
    ],
  },
  "data that is all zeroes": { size: 8 * MiB, before: ["write -P 1 0 8M"], since: ["write -P 0 1M 2M"] },
  "a size that no cluster divides": {
    size: 4 * MiB + 7 * 512,
    before: ["write -P 1 0 4197888"],
    since: ["write -P 2 4195840 2048", "write -P 3 0 512"],
  },
  "a bitmap of 4 KiB": {
    size: 16 * MiB,
    granularity: 4096,
    before: ["write -P 1 0 16M"],
    since: [
      "write -P 2 4096 4096",
      "write -z 69632 4096",
      "write -P 4 131072 64k",
      "write -P 5 1044480 8192",
    ],
  },
  "a bitmap of 512 bytes": {
    size: 4 * MiB,
    granularity: 512,
    before: ["write -P 1 0 4M"],
    since: ["write -P 2 512 512", "write -z 66048 1024", "write -P 4 131072 64k"],
  },
};

describeWith(["qemu-nbd", "qemu-img", "qemu-io", "nbdinfo"], "pull from qemu-nbd", () => {
  it.each(Object.entries(CASES))("stores exactly the dirty extents: %s", async (_title, c) => {
    const image = await imageWithBitmap(c, c.before, c.since);
    await qemuImg("convert", "-f", "raw", "-O", "qcow2", at("base.raw"), at("full.qcow2"));
    await using server = await startQemuNbd({ image, format: "qcow2", bitmap: "b0" });

    const ran = await nbdpull(
      "pull",
      server.uri,
      at("inc.qcow2"),
      "--bitmap",
      "b0",
      "--backing",
      at("full.qcow2"),
      "--json",
    );
    expect(ran.stderr).toBe("");
    expect(ran.code).toBe(0);
    const dirty = bytesOf(await nbdinfoMap(server.uri, "qemu:dirty-bitmap:b0"), 1);
    expect(ran.json()).toMatchObject({
      mode: "incremental",
      format: "qcow2",
      virtualSize: c.size,
      dirtyBytes: dirty,
    });
    const { dataBytes, zeroBytes } = ran.json() as { dataBytes: number; zeroBytes: number };
    expect(dataBytes + zeroBytes).toBe(dirty);

    await qemuImg("check", "-q", at("inc.qcow2"));
    await qemuImg("compare", "-f", "qcow2", "-F", "raw", at("inc.qcow2"), server.uri);
    const info = JSON.parse(await qemuImg("info", "--output=json", at("inc.qcow2"))) as Record<
      string,
      unknown
    >;
    expect(info).toMatchObject({ "backing-filename": "full.qcow2", "backing-filename-format": "qcow2" });
    expect((await readdir(folder)).sort()).toEqual(["base.raw", "disk.qcow2", "full.qcow2", "inc.qcow2"]);
  });

  it.each(Object.entries(CASES))(
    "stores a raw increment with a map of the defined extents: %s",
    async (_title, c) => {
      const image = await imageWithBitmap(c, c.before, c.since);
      await using server = await startQemuNbd({ image, format: "qcow2", bitmap: "b0" });
      const ran = await nbdpull("pull", server.uri, at("inc.raw"), "--bitmap", "b0", "--json");
      expect(ran.code).toBe(0);

      const map = JSON.parse(await readFile(at("inc.raw.map"), "utf8")) as MapLine[];
      const dirty = bytesOf(await nbdinfoMap(server.uri, "qemu:dirty-bitmap:b0"), 1);
      expect(map.reduce((sum, { length }) => sum + length, 0)).toBe(dirty);
      // Laid over the base by hand, the increment gives the disk.
      const rebuilt = await readFile(at("base.raw"));
      const increment = await readFile(at("inc.raw"));
      expect(increment.length).toBe(c.size);
      for (const { offset, length } of map) increment.copy(rebuilt, offset, offset, offset + length);
      await writeFile(at("rebuilt.raw"), rebuilt);
      await qemuImg("compare", "-f", "raw", "-F", "raw", at("rebuilt.raw"), server.uri);
    },
  );

  it.each(["full.qcow2", "full.raw", "full.img"])("copies a whole disk into %s", async (name) => {
    const image = await imageWithBitmap(
      { size: 40 * MiB + 512 },
      ["write -P 7 1M 3M", "write -P 8 40M 512", "write -P 0 20M 1M"],
      [],
    );
    await using server = await startQemuNbd({ image, format: "qcow2" });
    const ran = await nbdpull("pull", server.uri, at(name), "--json", "--digests");
    expect(ran.code).toBe(0);
    const format = name === "full.qcow2" ? "qcow2" : "raw";
    expect(ran.json()).toMatchObject({
      image: at(name),
      format,
      mode: "full",
      virtualSize: 40 * MiB + 512,
    });
    await qemuImg("compare", "-f", format, "-F", "raw", at(name), server.uri);
    if (format === "qcow2") await qemuImg("check", "-q", at(name));
    expect((await stat(at(name))).blocks * 512).toBeLessThan(6 * MiB);
    expect(await readdir(folder)).toContain(`${name}.digests`);
  });

  it("opens no second connection for a disk of one segment", async () => {
    const image = await imageWithBitmap({ size: 40 * MiB }, ["write -P 7 1M 512K"], []);
    await using server = await startQemuNbd({ image, format: "qcow2" });
    const ran = await nbdpull("pull", server.uri, at("copy.raw"), "--json");
    expect(ran.json()).toMatchObject({ dataBytes: MiB / 2, connections: 1 });
  });

  it("copies an image whose raw size is not a multiple of 512 as QEMU shows it", async () => {
    const content = Buffer.alloc(1_000_001, 0x5a);
    await writeFile(at("odd.raw"), content);
    await using server = await startQemuNbd({ image: at("odd.raw"), format: "raw" });
    expect((await nbdpull("pull", server.uri, at("copy.qcow2"))).code).toBe(0);
    expect((await nbdpull("pull", server.uri, at("copy.raw"))).code).toBe(0);
    await qemuImg("compare", "-f", "qcow2", "-F", "raw", at("copy.qcow2"), server.uri);
    const copied = await readFile(at("copy.raw"));
    expect(copied.subarray(0, content.length).equals(content)).toBe(true);
    expect(copied.length).toBe(1_000_448);
  });

  it("uses several connections if the server allows them", async () => {
    const image = await imageWithBitmap({ size: 64 * MiB }, ["write -P 7 0 64M"], []);
    await using server = await startQemuNbd({ image, format: "qcow2" });
    const two = await nbdpull("pull", server.uri, at("two.raw"), "--json");
    expect(two.json()).toMatchObject({ connections: 2 });
    const ran = await nbdpull("pull", server.uri, at("copy.raw"), "--connections", "4", "--json");
    expect(ran.json()).toMatchObject({ connections: 4 });
    await qemuImg("compare", "-f", "raw", "-F", "raw", at("copy.raw"), server.uri);
  });

  it("prints the same map as nbdinfo", async () => {
    const c = CASES["zeroed and discarded"];
    if (!c) throw new Error("the case is gone");
    const image = await imageWithBitmap(c, c.before, c.since);
    await using server = await startQemuNbd({
      image,
      format: "qcow2",
      bitmap: "b0",
      args: ["--allocation-depth"],
    });
    for (const [args, context] of [
      [[], "base:allocation"],
      [["--bitmap", "b0"], "qemu:dirty-bitmap:b0"],
      [["--context", "qemu:allocation-depth"], "qemu:allocation-depth"],
    ] as const) {
      const ran = await nbdpull("map", server.uri, ...args, "--json");
      expect(ran.json()).toEqual(await nbdinfoMap(server.uri, context));
    }
    const text = await nbdpull("map", server.uri, "--bitmap", "b0");
    expect(text.stdout).toMatch(/dirty: .* in \d+ extents/);
    expect(text.stdout.split("\n").at(-1)).toMatch(/^\[[ ░▒▓█]{64}\]$/);
  });

  it("prints the same export details as nbdinfo", async () => {
    const image = await imageWithBitmap({ size: 8 * MiB }, [], []);
    await using server = await startQemuNbd({ image, format: "qcow2", bitmap: "b0", exportName: "a disk" });
    const ran = await nbdpull("info", server.uri, "--json");
    const { stdout } = await execa("nbdinfo", ["--json", "--no-content", server.uri]);
    const theirs = JSON.parse(stdout) as { exports: Record<string, unknown>[] };
    const { "export-size-str": _, ...facts } = theirs.exports[0] ?? {};
    expect(ran.json()).toMatchObject({ ...theirs, exports: [facts] });
    const listed = await nbdpull("info", server.uri, "--list", "--json");
    expect(listed.json()).toMatchObject({ exports: [{ "export-name": "a disk" }] });
  });
});
