/**
 * Whoever can write to a repository's images puts other data in a cluster, with the XXH64 of what was there.
 * The digest file and the manifest stay as they were.
 */
import { open, readFile, unlink } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DEFAULT_DIGESTS, type DigestAlgorithm } from "../../src/backup/digest/algorithms.js";
import { createDigester } from "../../src/backup/digest/digest.js";
import type { ImageFormat } from "../../src/backup/image/image.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { NbdClient } from "../../src/nbd/index.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";
import { startServing } from "../support/serving.js";
import { withSameXxh64 } from "../support/xxh64-forgery.js";

const CLUSTER = 64 * 1024;
const SIZE = 8 * CLUSTER;
const GENUINE = Buffer.alloc(CLUSTER, "what the guest wrote. ");
const FORGED = withSameXxh64(GENUINE, Buffer.alloc(CLUSTER, "what the attacker wants. "));

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(2 * CLUSTER, GENUINE);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

/** A full point and, on top of it, an increment of one cluster. */
async function twoPoints(
  full: DigestAlgorithm | undefined,
  increment: DigestAlgorithm,
  format: ImageFormat = "qcow2",
): Promise<{ readonly full: Manifest; readonly increment: Manifest }> {
  const first = await chain.take({ digests: full, format });
  chain.disk.write(5 * CLUSTER, Buffer.alloc(CLUSTER, "written later. "));
  const second = await chain.take({ digests: increment, format });
  return { full: first.manifest, increment: second.manifest };
}

async function forge(point: Manifest, file = "vda.qcow2"): Promise<void> {
  const path = chain.pathOf(point, file);
  const place = (await readFile(path)).indexOf(GENUINE);
  expect(place).toBeGreaterThan(0);
  await using image = await open(path, "r+");
  await image.write(FORGED, 0, CLUSTER, place);
}

const repo = (): string => chain.repository.path;
const target = (): string => join(chain.folder, "restored.raw");
const verify = (...args: string[]): Promise<Ran> => nbdpull("verify", repo(), ...args);
const restore = (...args: string[]): Promise<Ran> =>
  nbdpull("restore", repo(), "--disk", "vda", "--to", target(), "--no-fsync", ...args);
const restoredCluster = async (): Promise<Buffer> => {
  const bytes = await readFile(target());
  await unlink(target());
  return bytes.subarray(2 * CLUSTER, 3 * CLUSTER);
};

/** The forged cluster is restored, and nothing calls it proven. */
async function expectUnprovenRestore(): Promise<void> {
  const text = await restore();
  expect(text).toMatchObject({ code: 0, stdout: expect.stringContaining("matches its checksum") });
  expect(`${text.stdout}${text.stderr}`).not.toMatch(/proven/);
  expect(await restoredCluster()).toEqual(FORGED);
  const told = await restore("--json");
  expect(told.json()).toMatchObject({ disks: [{ checked: true, proven: false }] });
  expect(await restoredCluster()).toEqual(FORGED);
}

describe("a cluster that was forged to have the XXH64 of the genuine one", () => {
  it("has the same XXH64, and other cryptographic digests", async () => {
    const digestOf = async (algorithm: DigestAlgorithm, bytes: Buffer): Promise<string> => {
      const digest = Buffer.alloc(32);
      (await createDigester(algorithm)).digestInto(bytes, digest, 0);
      return digest.toString("hex");
    };
    expect(await digestOf("xxh64", FORGED)).toBe(await digestOf("xxh64", GENUINE));
    expect(await digestOf(DEFAULT_DIGESTS, FORGED)).not.toBe(await digestOf(DEFAULT_DIGESTS, GENUINE));
    expect(FORGED.subarray(0, 24).toString()).toBe("what the attacker wants.");
  });

  it.each(["qcow2", "raw"] as const)("is found as damage by the default digests (%s)", async (format) => {
    const { full } = await twoPoints(DEFAULT_DIGESTS, DEFAULT_DIGESTS, format);
    const told = await restore("--json");
    expect(told.json()).toMatchObject({ disks: [{ checked: true, proven: true }] });
    expect(await restoredCluster()).toEqual(GENUINE);
    await forge(full, `vda.${format}`);
    const verified = await verify("--json");
    expect(verified.code).toBe(3);
    expect(verified.json()).toMatchObject({
      points: [
        { disks: [{ proven: true }], findings: [{ guestOffset: 2 * CLUSTER, length: CLUSTER }] },
        { disks: [{ proven: true }], findings: [] },
      ],
    });
    expect(await restore("--json")).toMatchObject({ code: 3 });
    await expect(readFile(target())).rejects.toMatchObject({ code: "ENOENT" });
  });

  it("is found where nobody said a word about digests", async () => {
    chain.show();
    const image = join(chain.folder, "disk.raw");
    expect((await nbdpull("pull", chain.uri, image, "--digests")).code).toBe(0);
    const to = ["--to", repo(), "--domain", MemoryChain.domain, "--disk", "vda"];
    expect((await nbdpull("import", image, ...to, "--offline")).code).toBe(0);
    const [id = ""] = await chain.repository.pointIds(MemoryChain.domain);
    const point = await chain.repository.point(MemoryChain.domain, id);
    expect(point.disks).toMatchObject([{ digests: { algorithm: DEFAULT_DIGESTS } }]);
    await forge(point);
    expect((await verify()).code).toBe(3);
  });

  it("passes in a point with xxh64, of which verify says no more than that it matches its checksum", async () => {
    const { full } = await twoPoints("xxh64", "xxh64");
    await forge(full);
    const verified = await verify();
    expect(verified).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("64 KiB matches its checksum"),
    });
    expect(verified.stdout).not.toMatch(/proven|verified/);
    expect((await verify("--json")).json()).toMatchObject({
      points: [{ disks: [{ digests: true, proven: false }] }, { disks: [{ digests: true, proven: false }] }],
    });
    await expectUnprovenRestore();
  });

  it("makes no proof where the points above it have cryptographic digests", async () => {
    const { full, increment } = await twoPoints("xxh64", DEFAULT_DIGESTS);
    await forge(full);
    expect((await verify()).stdout.split("\n")).toEqual([
      expect.stringMatching(new RegExp(`${full.id}: sound, 64 KiB matches its checksum$`)),
      expect.stringMatching(new RegExp(`${increment.id}: sound, 64 KiB verified$`)),
    ]);
    await expectUnprovenRestore();
  });

  it.each([
    ["xxh64", DEFAULT_DIGESTS],
    [DEFAULT_DIGESTS, "xxh64"],
  ] as const)("gets no cryptographic digest by a prune (%s below %s)", async (below, above) => {
    const { full, increment } = await twoPoints(below, above);
    if (below === "xxh64") await forge(full);
    expect((await nbdpull("prune", repo(), "--keep-last", "1", "--no-fsync")).code).toBe(0);
    const merged = await chain.repository.point(MemoryChain.domain, increment.id);
    expect(merged.disks).toMatchObject([{ mode: "full", digests: { algorithm: "xxh64" } }]);
    expect((await verify()).code).toBe(0);
    if (below === "xxh64") await expectUnprovenRestore();
    else expect((await restore("--json")).json()).toMatchObject({ disks: [{ proven: false }] });
  });

  it("is served with a word that it only matches its checksum", async () => {
    const { full } = await twoPoints("xxh64", DEFAULT_DIGESTS);
    await forge(full);
    const server = await startServing(repo(), "--socket", join(chain.folder, "served.sock"));
    const bytes = Buffer.alloc(CLUSTER);
    {
      await using client = await NbdClient.connect(server.uris[0] ?? "");
      await client.read(2 * CLUSTER, bytes);
    }
    expect(bytes).toEqual(FORGED);
    const { code, stderr } = await server.stop();
    expect([code, stderr]).toEqual([0, expect.stringMatching(/vda: .*matches its checksum/)]);
    expect(stderr).not.toMatch(/proven/);
  });

  it("is never served where the digests are cryptographic", async () => {
    const { full } = await twoPoints(DEFAULT_DIGESTS, DEFAULT_DIGESTS);
    await forge(full);
    const server = await startServing(repo(), "--socket", join(chain.folder, "served.sock"));
    {
      await using client = await NbdClient.connect(server.uris[0] ?? "");
      await expect(client.read(2 * CLUSTER, Buffer.alloc(512))).rejects.toMatchObject({ errno: "EIO" });
    }
    expect((await server.stop()).code).toBe(3);
  });
});
