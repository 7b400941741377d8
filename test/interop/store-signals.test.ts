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

  /** Gives the signal when the first request was made that is not answered. No other one is either. */
  async function interrupted(args: readonly string[], isFirst: (asked: string) => boolean): Promise<Ran> {
    let isSilent = false;
    lab.line.fault = ({ method, url }) => {
      isSilent ||= isFirst(`${method} ${decodeURIComponent(url)}`);
      return isSilent ? "never answer" : undefined;
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

  it.each([
    ["sends parts", /^PUT .*vda\.qcow2\?.*partNumber=2/, 143],
    ["has an object made of them", /^POST .*vda\.qcow2\?uploadId=/, 143],
    ["has sent its manifest", /^PUT .*\/point\.json/, 143],
    ["has committed its point", /^DELETE .*\.partial/, 0],
  ])("ends an import that %s, and the next leaves nothing of it", async (_, first, code) => {
    const image = join(lab.folder, "image.raw");
    await writeFile(image, noise(30 * MiB, 3));
    const args = ["import", "--disk", `vda=${image}`, "--to", lab.address("in"), "--domain", NAME];
    expect(await nbdpull("init", lab.address("in"))).toMatchObject({ code: 0 });
    expect((await interrupted(args, (asked) => first.test(asked))).code).toBe(code);
    expect(await lab.left("in")).not.toEqual([]);
    expect(await nbdpull(...args)).toMatchObject({ code: 0 });
    expect(await lab.left("in")).toEqual([]);
    expect(await nbdpull("verify", lab.address("in"))).toMatchObject({ code: 0 });
  });

  it.each([
    ["has an image copied aside", /^POST .*vda\.qcow2~[^?]*\?uploadId=/],
    ["has the manifest name what lies aside", /^PUT .*\/point\.json/],
    ["has new images made", /^POST .*vda\.qcow2\?uploadId=/],
    ["removes a point", /^DELETE .*\/point\.json/],
  ])("ends a prune that %s, and the next does the rest", async (_, first) => {
    const address = await lab.copyOf("chain", home, "pruned");
    const ran = await interrupted(["prune", address, "--keep-last", "2"], (asked) => first.test(asked));
    expect(ran.code).toBe(143);
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
    const ran = await interrupted(["copy", source, lab.address("to")], (asked) =>
      /^PUT .*\/to\/.*vda\.qcow2\?.*partNumber=2/.test(asked),
    );
    expect(ran.code).toBe(143);
    expect(await nbdpull("copy", source, lab.address("to"))).toMatchObject({ code: 0, stderr: "" });
    expect(await lab.left("to")).toEqual([]);
    expect(await nbdpull("verify", lab.address("to"))).toMatchObject({ code: 0 });
  });
});
