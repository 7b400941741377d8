/**
 * Commands that get a signal while they write to a store that has become silent: they end soon, and the next
 * run finds what they have left.
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { noise } from "../support/noise.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const CLUSTER = 65_536;
const NAME = MemoryChain.domain;
/** From the signal to the end of the process: 10 s for all that has to be done, and some for the machine. */
const MOST_MS = 13_000;

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "a signal while an object store is silent", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });
  let chain: MemoryChain;
  /** Where the chain lies. */
  let home: string;

  /** A full point and an increment, and a full one that has a cluster of the first. */
  beforeAll(async () => {
    home = lab.bucket;
    chain = await MemoryChain.start(40 * MiB, lab.address("chain"));
    chain.disk.write(0, noise(24 * MiB, 1));
    await chain.take({ full: true, digests: "sha256" });
    chain.disk.write(3 * MiB, noise(6 * MiB, 2));
    await chain.take({ digests: "sha256" });
    await chain.take({ full: true, digests: "sha256" });
  });
  afterAll(async () => {
    await chain?.[Symbol.asyncDispose]();
  });

  /**
   * Gives the signal when the first request was made that is not answered. No other one is either.
   * @param does whether the store does what the first one asks for
   */
  async function interrupted(
    args: readonly string[],
    isFirst: (asked: string) => boolean,
    does = false,
  ): Promise<Ran> {
    let isSilent = false;
    lab.line.fault = ({ method, url }) => {
      if (isSilent) return "never answer";
      isSilent = isFirst(`${method} ${decodeURIComponent(url)}`);
      return isSilent ? (does ? "swallow answer" : "never answer") : undefined;
    };
    const running = startNbdpull(args);
    await expect.poll(() => isSilent, { timeout: 60_000, interval: 20 }).toBe(true);
    const at = performance.now();
    running.kill("SIGTERM");
    const ran = await finished(running);
    expect(performance.now() - at).toBeLessThan(MOST_MS);
    lab.line.fault = () => undefined;
    return ran;
  }

  async function countAt(address: string): Promise<number> {
    return ((await nbdpull("points", address, "--json")).json() as unknown[]).length;
  }

  const MAY_BE_THERE = "left to the next run, and a point may be there (see nbdpull points)";

  it.each([
    ["sends parts", /^PUT .*vda\.qcow2\?.*partNumber=2/, false, 143, MAY_BE_THERE],
    ["has an object made of them", /^POST .*vda\.qcow2\?uploadId=/, false, 143, MAY_BE_THERE],
    ["has sent its manifest", /^PUT .*\/point\.json/, false, 143, MAY_BE_THERE],
    ["has had its manifest put", /^PUT .*\/point\.json/, true, 143, MAY_BE_THERE],
    ["looks for its note", /^GET .*\.partial/, false, 143, / point \S+ was made$/m],
    ["has committed its point", /^DELETE .*\.partial/, false, 0, ""],
    ["has had its note removed", /^DELETE .*\.partial/, true, 0, ""],
  ])("ends an import that %s, and the next leaves nothing half", async (what, first, does, code, message) => {
    const image = join(lab.folder, "image.raw");
    await writeFile(image, noise(30 * MiB, 3));
    const args = ["import", "--disk", `vda=${image}`, "--to", lab.address("in"), "--domain", NAME];
    expect(await nbdpull("init", lab.address("in"))).toMatchObject({ code: 0 });
    const ran = await interrupted(args, (asked) => first.test(asked), does);
    expect(ran.code).toBe(code);
    expect(ran.stderr).toMatch(message);
    if (message !== "") expect(ran.stderr).not.toContain("removed");
    expect(await lab.left("in")).not.toEqual([]);
    const points = /(?:had its|looks|committed)/.test(what) ? 1 : 0;
    expect(await countAt(lab.address("in"))).toBe(points);
    expect(await nbdpull(...args)).toMatchObject({ code: 0 });
    expect(await lab.left("in")).toEqual([]);
    expect(await countAt(lab.address("in"))).toBe(points + 1);
    expect(await nbdpull("verify", lab.address("in"))).toMatchObject({ code: 0 });
  });

  it.each([
    ["has an image copied aside", /^POST .*vda\.qcow2~[^?]*\?uploadId=/, false, 3],
    ["has the manifest name what lies aside", /^PUT .*\/point\.json/, false, 3],
    ["has had the manifest name it", /^PUT .*\/point\.json/, true, 3],
    ["has new images made", /^POST .*vda\.qcow2\?uploadId=/, false, 3],
    ["has had new images made", /^POST .*vda\.qcow2\?uploadId=/, true, 3],
    ["removes a point", /^DELETE .*\/point\.json/, false, 3],
    ["has had a point removed", /^DELETE .*\/point\.json/, true, 2],
  ])("ends a prune that %s, and the next does the rest", async (_, first, does, points) => {
    const address = await lab.copyOf("chain", home, "pruned");
    const ran = await interrupted(["prune", address, "--keep-last", "2"], (asked) => first.test(asked), does);
    expect(ran).toMatchObject({ code: 143, stderr: expect.stringContaining("left to the next run") });
    expect(await countAt(address)).toBe(points);
    expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
    expect(await nbdpull("prune", address, "--keep-last", "2")).toMatchObject({ code: 0 });
    expect(await lab.left("pruned")).toEqual([]);
    const verified = await nbdpull("verify", address, "--json");
    expect(verified).toMatchObject({ code: 0 });
    expect((verified.json() as { points: unknown[] }).points).toHaveLength(2);
  });

  it("ends a repair that proves its image, and the next mends it", async () => {
    const address = await lab.copyOf("chain", home, "mended");
    const Key = `mended/${NAME}/${chain.points[0]?.id}/vda.qcow2`;
    const image = await lab.read(Key);
    const damaged = Buffer.from(image);
    damaged.writeUInt8((damaged[20 * MiB + CLUSTER + 5] ?? 0) ^ 0xff, 20 * MiB + CLUSTER + 5);
    await lab.put(Key, damaged);
    let isMade = false;
    const ran = await interrupted(["repair", address], (asked) => {
      const wasMade = isMade;
      isMade ||= /^POST .*vda\.qcow2\?uploadId=/.test(asked);
      return wasMade && asked.startsWith("GET ") && !asked.includes(".lease");
    });
    expect(ran.code).toBe(143);
    expect((await nbdpull("verify", address)).code).toBe(3);
    expect(await nbdpull("repair", address)).toMatchObject({ code: 0 });
    expect((await lab.read(Key)).equals(image)).toBe(true);
    expect(await lab.left("mended")).toEqual([]);
  });

  it("ends a copy inside a point, and the next goes on", async () => {
    const source = await lab.copyOf("chain", home, "from");
    expect(await nbdpull("init", lab.address("to"))).toMatchObject({ code: 0 });
    const before = lab.line.seen.length;
    const asked = (pattern: RegExp): string[] =>
      lab.line.seen
        .slice(before)
        .filter((each) => each.includes(`/to/${NAME}/${chain.points[0]?.id}/`) && pattern.test(each));
    const ran = await interrupted(["copy", source, lab.address("to")], (asked) =>
      /^PUT .*\/to\/.*vda\.qcow2\?.*partNumber=2/.test(asked),
    );
    expect(ran).toMatchObject({
      code: 143,
      stderr: expect.stringContaining("the same command goes on with it"),
    });
    // A removal could be done when the next one counts on what it removes.
    expect(asked(/^DELETE/)).toEqual([]);
    expect(await nbdpull("copy", source, lab.address("to"))).toMatchObject({ code: 0, stderr: "" });
    expect(asked(/^POST .*vda\.qcow2\?uploads/)).toHaveLength(1);
    expect(await lab.left("to")).toEqual([]);
    expect(await nbdpull("verify", lab.address("to"))).toMatchObject({ code: 0 });
  });
});
