/**
 * Damage of points in Ceph, mended by new objects in place of the damaged ones. `NBDPULL_KILL_ROUNDS=20`
 * kills at every step, and at random moments too.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { CreateMultipartUploadCommand } from "@aws-sdk/client-s3";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { repairPoints } from "../../src/backup/repair/repair.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";
import { type Repaired, repaired } from "../support/repaired.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const CLUSTER = 64 * 1024;
const NAME = MemoryChain.domain;
const KILL_ROUNDS = Number(process.env["NBDPULL_KILL_ROUNDS"] ?? "0");
const DIE = fileURLToPath(new URL("../support/repair-and-die.mjs", import.meta.url));
/** The step at which a kill leaves most to do. */
const HARDEST = "replaced vda.qcow2";

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "nbdpull repair in an object store", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });
  let chain: MemoryChain;
  /** Where the chain lies. */
  let home: string;

  /** A full point, an increment with a cluster of its own, and another full one. */
  beforeAll(async () => {
    home = lab.bucket;
    chain = await MemoryChain.start(40 * MiB + 512, lab.address("chain"));
    for (let at = 0; at < 26 * MiB; at += CLUSTER) chain.disk.write(at, Buffer.alloc(CLUSTER, `at ${at};`));
    await chain.take({ digests: "sha256" });
    const more = Buffer.alloc(CLUSTER, "more");
    chain.disk.write(CLUSTER, more);
    await chain.take({ digests: "sha256" });
    chain.disk.write(CLUSTER, Buffer.alloc(CLUSTER, "other"));
    await chain.take({ digests: "sha256", full: true });
    chain.disk.write(CLUSTER, more);
    chain.show();
  });
  afterAll(async () => {
    await chain?.[Symbol.asyncDispose]();
  });

  const idOf = (point: number): string => chain.points[point]?.id ?? "";
  const keyOf = (name: string, point: number, file = "vda.qcow2"): string =>
    `${name}/${NAME}/${idOf(point)}/${file}`;

  const copyOf = (name: string): Promise<string> => lab.copyOf("chain", home, name);

  /** @returns what the object was before */
  async function flip(Key: string, ...places: readonly number[]): Promise<Buffer> {
    const bytes = await lab.read(Key);
    const damaged = Buffer.from(bytes);
    for (const at of places) damaged[at] = (damaged[at] ?? 0) ^ 0xff;
    await lab.put(Key, damaged);
    return bytes;
  }

  it("mends clusters and refcounts, and takes from the living disk what no point has", async () => {
    const address = await copyOf("mended");
    const [full, increment] = [keyOf("mended", 0), keyOf("mended", 1)];
    // The header is the first cluster of the file. Clusters 3 and 20 MiB of the disk are not close together.
    const image = await flip(full, 4 * CLUSTER + 5, 20 * MiB + CLUSTER + 5, 20 * MiB + CLUSTER + 900);
    const table = Number(image.readBigUInt64BE(48));
    await flip(full, Number(image.readBigUInt64BE(table)) + 21);
    const more = await flip(increment, CLUSTER + 5);
    const done = await repaired(3, address);
    expect(done.mended).toMatchObject([
      { point: idOf(0), what: "refcounts" },
      { point: idOf(0), what: "cluster", guestOffset: 3 * CLUSTER, from: `point ${idOf(2)}` },
      { point: idOf(0), what: "cluster", guestOffset: 20 * MiB },
    ]);
    expect(done.left).toMatchObject([{ point: idOf(1), severity: "damage", guestOffset: CLUSTER }]);
    expect(done.unrestorable).toMatchObject([{ id: idOf(1) }]);
    expect((await lab.read(full)).equals(image)).toBe(true);
    const living = await repaired(0, address, NAME, "--from", `vda=${chain.uri}`);
    expect(living.mended).toMatchObject([{ point: idOf(1), guestOffset: CLUSTER, from: "the living disk" }]);
    expect((await lab.read(increment)).equals(more)).toBe(true);
    expect(await lab.left("mended")).toEqual([]);
  });

  it("leaves an image whose header is damaged too, and goes on with the others", async () => {
    const address = await copyOf("headless");
    const full = keyOf("headless", 0);
    const image = await lab.read(full);
    const table = Number(image.readBigUInt64BE(48));
    image.writeUInt8(9, Number(image.readBigUInt64BE(table)) + 21);
    // The disk's size, which no table contradicts.
    image.writeBigUInt64BE(image.readBigUInt64BE(24) + 1024n, 24);
    await lab.put(full, image);
    await lab.remove(keyOf("headless", 2, "vda.digests"));
    const { mended, unrestorable } = await repaired(3, address);
    expect(mended).toMatchObject([{ point: idOf(2), what: "digests" }]);
    expect(unrestorable).toMatchObject([{ id: idOf(0) }, { id: idOf(1) }]);
    expect((await lab.read(full)).equals(image)).toBe(true);
    // What is known of its damage.
    expect(await lab.left("headless")).toEqual([keyOf("headless", 0, ".damage.json")]);
  });

  it("makes digest files again, and clears away what has no note", async () => {
    const address = await copyOf("digests");
    await flip(keyOf("digests", 0, "vda.digests"), 100);
    await lab.remove(keyOf("digests", 2, "vda.digests"));
    await lab.put(keyOf("digests", 1, "vda.qcow2~0badcafe"), "late");
    const Key = keyOf("digests", 1);
    await lab.client.send(new CreateMultipartUploadCommand({ Bucket: lab.bucket, Key }));
    const other = `digests/${NAME}/20200101T000000.000Z/vda.qcow2`;
    await lab.put(other, "another program copies a point there");
    const cleared = [{ point: idOf(1), objects: 1, uploads: 1, noted: false }];
    const there = await lab.keys("digests/");
    const dry = await repaired(3, address, "--dry-run");
    expect((await lab.keys("digests/")).sort()).toEqual(there.sort());
    expect(await lab.left("digests")).toHaveLength(2);
    const done = await repaired(0, address);
    expect(dry).toMatchObject({ cleared, mended: done.mended });
    expect(done.cleared).toEqual(cleared);
    expect(done.mended).toMatchObject([
      { point: idOf(0), what: "digests" },
      { point: idOf(2), what: "digests" },
    ]);
    expect(await lab.left("digests")).toEqual([other]);
    expect((await lab.keys(`digests/${NAME}/2`)).filter((key) => key !== other)).toHaveLength(9);
  });

  it("changes nothing where the store copies something else, or a guest runs on what is based on it", async () => {
    const address = await copyOf("lied");
    const image = await flip(keyOf("lied", 0), 20 * MiB + CLUSTER + 5);
    const damaged = await lab.read(keyOf("lied", 0));
    // Where both ends of what is copied are right, only a digest tells.
    const other = Buffer.from(damaged);
    other[5 * MiB] = 0xee;
    await lab.put("other", other);
    let copies = 0;
    lab.line.fault = ({ method, url }) =>
      method === "PUT" && url.includes("vda.qcow2?") && url.includes("partNumber=1&") && copies++ === 0
        ? { copyFrom: `${lab.bucket}/other` }
        : undefined;
    const lied = await nbdpull("repair", address);
    expect([copies, lied.code]).toEqual([2, 1]);
    expect(lied.stderr).toMatch(
      /E_S3_FAILED: .* was mended, and what the store has put there is something else/,
    );
    lab.line.fault = () => undefined;
    const live = keyOf("lied", 1, ".live.3b5ba9a8-40a1-4a4f-ae0f-5ff3d0e4a0f5.json");
    await lab.put(live, "{}");
    const spared = await nbdpull("repair", address);
    expect(spared).toMatchObject({
      code: 3,
      stderr: expect.stringMatching(/point .* is not mended now: a guest runs on point .* is based on it/),
    });
    await lab.remove(live);
    expect(await lab.half("lied")).toEqual([keyOf("lied", 0, ".damage.json")]);
    expect((await lab.read(keyOf("lied", 0))).equals(damaged)).toBe(true);
    expect((await repaired(0, address)).mended).toHaveLength(1);
    expect((await lab.read(keyOf("lied", 0))).equals(image)).toBe(true);
  });

  it("spares the points that a live restore needs, before anything is uploaded, and mends all others", async () => {
    const address = await copyOf("spared");
    const damaged = [0, 1, 2].map((point) => keyOf("spared", point));
    const images = [await flip(damaged[0] ?? "", 20 * MiB + CLUSTER + 5)];
    images.push(await flip(damaged[1] ?? "", CLUSTER + 5));
    images.push(await flip(damaged[2] ?? "", 20 * MiB + CLUSTER + 5));
    const wrong = await Promise.all(damaged.map((key) => lab.read(key)));
    const live = (point: number): string =>
      keyOf("spared", point, ".live.3b5ba9a8-40a1-4a4f-ae0f-5ff3d0e4a0f5.json");
    const spared = async (points: readonly number[], ...more: readonly string[]): Promise<number[]> => {
      lab.line.seen.length = 0;
      const ran = await nbdpull("repair", address, NAME, "--json", ...more);
      expect(ran.code).toBe(3);
      for (const point of points) {
        expect(ran.stderr).toContain(`point ${idOf(point)} of ${NAME} is not mended now: a guest runs on`);
        expect(
          lab.line.seen.filter((each) => each.includes(`${idOf(point)}/vda`) && /^P/.test(each)),
        ).toEqual([]);
      }
      const { mended } = (ran.json() as { domains: Repaired[] }).domains[0] as Repaired;
      return mended.map(({ point }) => chain.points.findIndex(({ id }) => id === point));
    };
    await lab.put(live(1), "{}");
    const from = ["--from", `vda=${chain.uri}`];
    expect(await spared([0, 1], "--dry-run", ...from)).toEqual([2]);
    expect(await spared([0, 1], ...from)).toEqual([2]);
    expect((await lab.read(damaged[0] ?? "")).equals(wrong[0] as Buffer)).toBe(true);
    expect((await lab.read(damaged[2] ?? "")).equals(images[2] as Buffer)).toBe(true);
    await lab.remove(live(1));
    // One that begins after the look: of the point that is mended last.
    await lab.put(damaged[2] ?? "", wrong[2] as Buffer);
    let isPut = false;
    lab.line.fault = ({ method, url }) => {
      if (method !== "PUT" || !url.includes(`.${idOf(0)}.partial`) || isPut) return undefined;
      isPut = true;
      void lab.put(live(2), "{}");
      return undefined;
    };
    expect(await spared([2], ...from)).toEqual([0, 1]);
    lab.line.fault = () => undefined;
    await lab.remove(live(2));
    await repaired(0, address);
    for (const [i, key] of damaged.entries())
      expect((await lab.read(key)).equals(images[i] as Buffer)).toBe(true);
    expect(await lab.left("spared")).toEqual([]);
  });

  it("spares all older points where nobody can tell any more what a guest's point is based on", async () => {
    const address = await copyOf("unread");
    const image = await flip(keyOf("unread", 0), 20 * MiB + CLUSTER + 5);
    const damaged = await lab.read(keyOf("unread", 0));
    const manifest = await lab.read(keyOf("unread", 1, "point.json"));
    const live = keyOf("unread", 1, ".live.3b5ba9a8-40a1-4a4f-ae0f-5ff3d0e4a0f5.json");
    await lab.put(live, "{}");
    const spared = async (...more: readonly string[]): Promise<void> => {
      const ran = await nbdpull("repair", address, ...more);
      expect(ran.code).toBe(3);
      const text = `point ${idOf(0)} of ${NAME} is not mended now: a guest runs on point ${idOf(1)}`;
      // Once, and nothing else: no domain is asked for what could not be mended anyway.
      expect(ran.stderr.split(text)).toHaveLength(2);
      expect(ran.stderr).not.toMatch(/ E_/);
      expect((await lab.read(keyOf("unread", 0))).equals(damaged)).toBe(true);
    };
    const nowhere = [NAME, "--from-domain", "--connect", "qemu+unix:///system?socket=/nowhere"];
    await spared(...nowhere);
    await lab.put(keyOf("unread", 1, "point.json"), "[");
    await spared();
    await spared(...nowhere);
    // The guest's begins after the look.
    await lab.remove(live);
    let isPut = false;
    lab.line.fault = ({ method, url }) => {
      if (method !== "PUT" || !url.includes(`.${idOf(0)}.partial`) || isPut) return undefined;
      isPut = true;
      void lab.put(live, "{}");
      return undefined;
    };
    await spared();
    lab.line.fault = () => undefined;
    await lab.remove(live);
    await lab.put(keyOf("unread", 1, "point.json"), manifest);
    await repaired(0, address);
    expect((await lab.read(keyOf("unread", 0))).equals(image)).toBe(true);
  });

  it("leaves points whose manifests can't be changed, says why, and mends all others", async () => {
    const address = await copyOf("deep");
    await flip(keyOf("deep", 0), 20 * MiB + CLUSTER + 5);
    await lab.remove(keyOf("deep", 1, "vda.digests"));
    const image = await flip(keyOf("deep", 2), 4 * CLUSTER + 5);
    for (const point of [0, 1]) {
      const text = (await lab.read(keyOf("deep", point, "point.json"))).toString();
      const deep = `{"later": ${"[".repeat(10_000)}${"]".repeat(10_000)},`;
      await lab.put(keyOf("deep", point, "point.json"), text.replace("{", deep));
    }
    for (const args of [["--dry-run"], []]) {
      const ran = await nbdpull("repair", address, "--json", ...args);
      expect([args, ran.code]).toEqual([args, 3]);
      for (const point of [0, 1])
        expect(ran.stderr).toContain(`the manifest of point ${idOf(point)} can't be changed`);
      expect((ran.json() as { domains: Repaired[] }).domains[0]?.mended).toMatchObject([{ point: idOf(2) }]);
    }
    expect((await lab.read(keyOf("deep", 2))).equals(image)).toBe(true);
    const left = await lab.half("deep");
    expect(left.filter((key) => !key.endsWith("/.damage.json"))).toEqual([]);
  });

  it("proves what a raw image has of zeroes as it proves its data", async () => {
    await using raw = await MemoryChain.start(40 * MiB + 512);
    raw.disk.write(0, Buffer.alloc(CLUSTER, "raw"));
    raw.disk.write(39 * MiB, Buffer.alloc(MiB, "raw"));
    await raw.take({ digests: "sha256", format: "raw" });
    const address = lab.address("raw");
    expect(await nbdpull("init", address)).toMatchObject({ code: 0 });
    expect(await nbdpull("copy", raw.repository.path, address)).toMatchObject({ code: 0 });
    const Key = `raw/${NAME}/${raw.points[0]?.id}/vda.raw`;
    const image = await flip(Key, 20 * MiB + 5, 39 * MiB);
    const damaged = await lab.read(Key);
    const lie = Buffer.from(damaged);
    lie[5 * MiB] = 0xee;
    await lab.put("other-raw", lie);
    let copies = 0;
    lab.line.fault = ({ method, url }) =>
      method === "PUT" && url.includes("vda.raw?") && url.includes("partNumber=1&") && copies++ === 0
        ? { copyFrom: `${lab.bucket}/other-raw` }
        : undefined;
    const lied = await nbdpull("repair", address);
    expect(lied.stderr).toMatch(
      /E_S3_FAILED: .* was mended, and what the store has put there is something else/,
    );
    expect([copies > 0, lied.code]).toEqual([true, 1]);
    lab.line.fault = () => undefined;
    expect((await lab.read(Key)).equals(damaged)).toBe(true);
    await flip(Key, 39 * MiB);
    expect((await repaired(0, address)).mended).toMatchObject([{ guestOffset: 20 * MiB, from: "zeroes" }]);
    expect((await lab.read(Key)).equals(image)).toBe(true);
    expect(await lab.left("raw")).toEqual([]);
  });

  it("is undone by the next run, and done again, whichever step it died at", async () => {
    const places = [4 * CLUSTER + 5, 20 * MiB + CLUSTER + 5];
    const die = async (name: string, step: number): Promise<string[]> => {
      const address = await copyOf(name);
      const image = await flip(keyOf(name, 0), ...places);
      const died = await execa(process.execPath, [DIE, address, NAME, `${step}`], { reject: false });
      await settle(name, image);
      return died.stderr.split("\n").filter((each) => /^[a-z]+ [a-z]/.test(each));
    };
    /** Whatever was there is there still, and the next repair mends the rest. */
    const settle = async (name: string, image: Buffer): Promise<void> => {
      const address = lab.address(name);
      const { points } = (await nbdpull("verify", address, "--json")).json() as {
        points: { id: string; findings: { guestOffset?: number }[] }[];
      };
      expect(points).toHaveLength(3);
      for (const { id, findings } of points) {
        for (const { guestOffset } of findings) expect([3 * CLUSTER, 20 * MiB]).toContain(guestOffset);
        if (id !== idOf(0)) expect(findings).toEqual([]);
      }
      await repaired(0, address);
      expect(await lab.left(name)).toEqual([]);
      expect((await lab.read(keyOf(name, 0))).equals(image)).toBe(true);
      expect(await lab.keys(`${name}/${NAME}/2`)).toHaveLength(9);
    };
    const steps = KILL_ROUNDS === 0 ? [] : await die("lived", -1);
    if (KILL_ROUNDS > 0) expect(steps).toContain(HARDEST);
    for (const [step, name] of steps.entries()) expect((await die(`died-${step}`, step)).at(-1)).toBe(name);
    if (KILL_ROUNDS === 0) expect((await die("died", 4)).at(-1)).toBe(HARDEST);
    for (let round = 0; round < KILL_ROUNDS; round += 1) {
      const name = `random-${round}`;
      const address = await copyOf(name);
      const image = await flip(keyOf(name, 0), ...places);
      const run = startNbdpull(["repair", address]);
      while ((await lab.half(name)).length === 0) await sleep(20);
      await sleep(Math.random() * 700);
      run.kill("SIGKILL");
      await run.ended;
      await settle(name, image);
    }
  }, 1_200_000);

  it("is undone when a signal comes while the new image is proven, and done by the next run", async () => {
    const address = await copyOf("interrupted");
    const image = await flip(keyOf("interrupted", 0), 4 * CLUSTER + 5);
    const damaged = await lab.read(keyOf("interrupted", 0));
    const stop = new AbortController();
    const steps: string[] = [];
    const repository = await Repository.open(address, { signal: stop.signal });
    const onStep = (step: string): void => {
      steps.push(step);
      if (step === "replaced vda.qcow2") stop.abort(new Error("enough"));
    };
    const options = { repository, domain: NAME, ids: [idOf(0)], dryRun: false, signal: stop.signal, onStep };
    await expect(repairPoints(options)).rejects.toThrow("enough");
    expect(steps.at(-1)).toBe("replaced vda.qcow2");
    expect(await lab.left("interrupted")).toEqual([]);
    expect((await lab.read(keyOf("interrupted", 0))).equals(damaged)).toBe(true);
    await repaired(0, address);
    expect(await lab.left("interrupted")).toEqual([]);
    expect((await lab.read(keyOf("interrupted", 0))).equals(image)).toBe(true);
  });

  it("mends nothing where a late manifest could undo it, and tells of old versions that stay", async () => {
    const Bucket = await lab.makeBucket("locked", { ObjectLockEnabledForBucket: true });
    const address = lab.address("here", Bucket);
    await using locked = await MemoryChain.start(MiB, address);
    locked.disk.write(0, Buffer.alloc(MiB, "locked"));
    for (const full of [true, true]) await locked.take({ digests: "sha256", full });
    const Key = `here/${NAME}/${locked.points[0]?.id}/vda.qcow2`;
    const bytes = await lab.read(Key, Bucket);
    const damaged = Buffer.from(bytes);
    damaged[CLUSTER + 5] = 0xee;
    await lab.put(Key, damaged, Bucket);
    const refused = await nbdpull("repair", address);
    expect(refused).toMatchObject({ code: 4, stderr: expect.stringContaining("E_S3_LACKS") });
    // As a store that can: nobody else writes there.
    lab.line.fault = () => "keep conditions";
    const marker = (await lab.read("here/nbdpull.json", Bucket)).toString();
    await lab.put("here/nbdpull.json", marker.replace(/("conditional\w+":) false/g, "$1 true"), Bucket);
    const ran = await nbdpull("repair", address);
    expect(ran).toMatchObject({
      code: 0,
      stderr: expect.stringMatching(/keeps versions: 2 files that were/),
    });
    expect((await lab.read(Key, Bucket)).equals(bytes)).toBe(true);
  });
});
