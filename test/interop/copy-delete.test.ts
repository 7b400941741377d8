/** A copy that follows what its original drops, and what is dropped in the copy: folders and Ceph. */
import { readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { type CopyOptions, type CopyResult, copyDomain } from "../../src/backup/copy/copy-points.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { verifyPoint } from "../../src/backup/verify/verify.js";
import { flipByte } from "../support/flip-byte.js";
import { ageLocks } from "../support/left-by-prune.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { restoreDisk } from "../support/restore-disk.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;

/** Two chains of a full point and increments, of which the numbers are written too. */
async function twoChains(increments: readonly number[]): Promise<MemoryChain> {
  const chain = await MemoryChain.start(4 * MiB + 577);
  for (const round of [1, 2]) {
    chain.disk.write(round * 4096, Buffer.alloc(MiB, `full ${round}`));
    await chain.take({ full: true, digests: "sha256", granularity: 4096 });
    for (const more of increments) {
      chain.disk.write(round * more * 100_000, Buffer.alloc(60_000, `round ${round}.${more}`));
      await chain.take({ digests: "sha256", granularity: 4096 });
    }
  }
  return chain;
}

let original: MemoryChain;
beforeAll(async () => {
  original = await twoChains([3, 4]);
});
afterAll(async () => {
  await original?.[Symbol.asyncDispose]();
});

const idsOf = (chain: MemoryChain): string[] => chain.points.map(({ id }) => id);

async function copy(from: string, to: string, ...more: readonly string[]): Promise<Ran> {
  return await nbdpull("copy", from, to, "--create", ...more);
}

async function resultOf(
  from: string,
  to: string,
  how: Pick<CopyOptions, "which" | "remove"> = {},
): Promise<CopyResult> {
  return await copyDomain({
    from: await Repository.open(from),
    to: await Repository.openOrCreate(to),
    ...{ domain: NAME, signal: new AbortController().signal, ...how },
  });
}

async function pointsIn(path: string): Promise<readonly string[]> {
  return await (await Repository.open(path)).pointIds(NAME);
}

/** The copy has these points, each sound and with the bytes that the disk had. */
async function expectCopy(to: string, chain: MemoryChain, wanted: readonly string[]): Promise<void> {
  const repository = await Repository.open(to);
  const points = await repository.points(NAME, (error) => {
    throw error;
  });
  expect(points.map(({ id }) => id)).toEqual(wanted);
  for (const point of points) {
    const { findings } = await verifyPoint(repository, NAME, point, { signal: new AbortController().signal });
    expect(findings).toEqual([]);
  }
  const [newest = "", path] = [wanted.at(-1), join(chain.folder, "restored.raw")];
  const point = points.find(({ id }) => id === newest);
  if (!point) throw new Error(`there is no point ${newest}`);
  const how = { diskName: "vda", targetPath: path, format: "raw", force: true, sync: false } as const;
  await restoreDisk({ repository, point, ...how });
  await execa("qemu-img", ["compare", "-f", "raw", "-F", "raw", path, await chain.rawFile(newest)]);
}

describeWith(["qemu-img"], "a copy in a folder", () => {
  let chain: MemoryChain;
  let from: string;
  let to: string;
  const begin = async (): Promise<void> => {
    chain = await original.copy();
    from = chain.repository.path;
    to = join(chain.folder, "to");
    await resultOf(from, to);
  };
  afterEach(async () => {
    await chain?.[Symbol.asyncDispose]();
  });

  it("does not get again what its own prune has dropped, until it is asked for", async () => {
    await begin();
    const ids = idsOf(chain);
    // Drops the first chain, and merges two points of the second one.
    expect(await nbdpull("prune", to, "--keep-last", "1")).toMatchObject({ code: 0 });
    const left = await resultOf(from, to);
    expect(left.dropped).toEqual(ids.slice(0, 5));
    expect(left.points.map(({ state }) => state)).toEqual(["there"]);
    const told = await copy(from, to, "--since", chain.points[0]?.createdAt ?? "");
    expect(told.stdout).toContain(
      "5 more were dropped there after they had been copied: --all copies them again",
    );
    // A new increment stands on the merged point.
    chain.disk.write(3 * MiB, Buffer.alloc(5000, "later"));
    await chain.take({ digests: "sha256", granularity: 4096 });
    await resultOf(from, to);
    await expectCopy(to, chain, idsOf(chain).slice(5));
    const all = await resultOf(from, to, { which: "all" });
    expect(all.points.filter(({ state }) => state === "copied")).toHaveLength(5);
    await expectCopy(to, chain, idsOf(chain));
    expect((await copy(from, to, "--all", "--latest")).code).toBe(2);
  });

  it("gets again what was lost otherwise: bases, the newest point, and what was damaged", async () => {
    await begin();
    const ids = idsOf(chain);
    const lose = (index: number) => rm(join(to, NAME, ids[index] ?? ""), { recursive: true });
    await lose(1);
    await lose(5);
    expect((await resultOf(from, to)).dropped).toEqual([]);
    await expectCopy(to, chain, ids);
    // A copy that was told of the damage does not take it for dropped afterwards.
    await writeFile(join(to, NAME, ids[2] ?? "", "point.json"), "{");
    expect(await copy(from, to)).toMatchObject({ code: 3 });
    await lose(2);
    expect((await resultOf(from, to)).dropped).toEqual([]);
    await expectCopy(to, chain, ids);
    // Nobody knows who has removed this one.
    await lose(2);
    expect((await resultOf(from, to)).dropped).toEqual([ids[2]]);
    // Without a record that can be read, it was never there.
    await writeFile(join(to, NAME, ".copied.json"), "[");
    expect((await resultOf(from, to)).dropped).toEqual([]);
    await expectCopy(to, chain, ids);
  });

  it("follows a prune of the original, after rules of its own", async () => {
    await begin();
    const ids = idsOf(chain);
    expect((await copy(from, to, "--delete")).stderr).toContain("E_KEEP_NOTHING");
    expect((await copy(from, to, "--keep-last", "3")).code).toBe(2);
    expect(await nbdpull("prune", from, "--keep-last", "2")).toMatchObject({ code: 0 });
    // Without it, everything stays.
    await resultOf(from, to);
    expect(await pointsIn(to)).toEqual(ids);
    const dry = await copy(from, to, "--delete", "--keep-last", "3", "--dry-run");
    expect(dry.stdout).toContain(`${ids[0]} would be removed`);
    expect(dry.stdout).toContain(`${ids[3]} stays (last)`);
    expect(await pointsIn(to)).toEqual(ids);
    // Ours alone: a point that never came from there.
    const own = "20200101T000000.000Z";
    await addOwn(own);
    const done = await resultOf(from, to, { remove: { last: 3 } });
    expect(done.followed?.gone).toEqual(ids.slice(0, 4));
    await expectCopy(to, chain, [own, ...ids.slice(3)]);
    expect((await resultOf(from, to, { remove: { last: 1 } })).followed?.gone).toEqual([ids[3]]);
    await expectCopy(to, chain, [own, ...ids.slice(4)]);
    expect((await resultOf(from, to, { remove: { last: 1 } })).followed).toEqual({ gone: [] });
  });

  /** A full point of the copy that the original does not have. */
  async function addOwn(id: string): Promise<void> {
    const [first = ""] = idsOf(chain);
    await execa("cp", ["-a", join(to, NAME, first), join(to, NAME, id)]);
    const manifest = join(to, NAME, id, "point.json");
    await writeFile(manifest, (await readFile(manifest, "utf8")).replaceAll(first, id));
  }

  it("keeps everything where the original is empty, gone or damaged", async () => {
    await begin();
    const ids = idsOf(chain);
    const follow = (...more: readonly string[]) => copy(from, to, "--delete", "--keep-last", "1", ...more);
    await rename(join(from, NAME), join(chain.folder, "away"));
    for (const named of [[], [NAME]]) {
      const ran = await follow(...named);
      expect(ran).toMatchObject({ code: 4 });
      expect(ran.stderr).toMatch(/E_SOURCE_EMPTY: .* has no points of guest any more.*nbdpull forget/);
    }
    expect((await follow("nobody")).stderr).toContain("no domain nobody");
    await rename(from, `${from}.away`);
    expect(await follow()).toMatchObject({ code: 4 });
    await rename(`${from}.away`, from);
    await rename(join(chain.folder, "away"), join(from, NAME));
    expect(await nbdpull("prune", from, "--keep-last", "3")).toMatchObject({ code: 0 });
    // It is in both, and sound in the copy: what the copy has of it, nobody else may have.
    const image = join(from, NAME, ids[5] ?? "", "vda.qcow2");
    const bytes = await readFile(image);
    await flipByte(image, 65_536 + 20_000);
    expect(await nbdpull("verify", from)).toMatchObject({ code: 3 });
    const refused = await follow();
    expect(refused).toMatchObject({ code: 3 });
    expect(refused.stdout).toMatch(new RegExp(`nothing is removed: point ${ids[5]}: vda is damaged`));
    expect(await pointsIn(to)).toEqual(ids);
    await writeFile(image, bytes);
    expect(await nbdpull("verify", from)).toMatchObject({ code: 0 });
    expect(await follow()).toMatchObject({ code: 0 });
    await expectCopy(to, chain, ids.slice(3));
    // Emptied, and backed up once since: as often as that is copied.
    await rm(join(from, NAME), { recursive: true });
    await takeFull(chain);
    for (const _ of [1, 2]) {
      const ran = await follow();
      expect(ran).toMatchObject({ code: 4 });
      expect(ran.stderr).toMatch(/E_SOURCE_EMPTY: .* has new points of guest, .* 3 points .*nbdpull prune/);
      expect(await pointsIn(to)).toEqual(idsOf(chain).slice(3));
    }
    await resultOf(from, to);
    expect(await follow()).toMatchObject({ code: 0 });
    await expectCopy(to, chain, idsOf(chain).slice(6));
    // Forgotten on purpose, nothing of it stays.
    expect(await nbdpull("forget", to, NAME, "--force")).toMatchObject({ code: 0 });
    expect(await readdir(to)).toEqual(["nbdpull.json"]);
  });

  it("is whole after a kill at any moment of that, and the next one goes on", async () => {
    await begin();
    const ids = idsOf(chain);
    expect(await nbdpull("prune", from, "--keep-last", "1")).toMatchObject({ code: 0 });
    const follow = ["copy", from, to, "--delete", "--keep-last", "1"];
    for (const after of [0, 15]) {
      const running = startNbdpull(follow);
      const begun = (): Promise<boolean> =>
        stat(join(to, NAME, ".prune/journal.json")).then(
          () => true,
          () => false,
        );
      const ended = running.ended.then(() => true);
      while (!(await begun())) if (await Promise.race([ended, sleep(2, false)])) break;
      await sleep(after);
      running.kill("SIGKILL");
      await running.ended;
      await ageLocks(join(to, NAME));
      expect(await nbdpull("verify", to)).toMatchObject({ code: 0 });
      expect((await pointsIn(to)).at(-1)).toBe(ids[5]);
    }
    expect(await nbdpull(...(follow as [string, ...string[]]))).toMatchObject({ code: 0 });
    await expectCopy(to, chain, ids.slice(5));
  });
});

describeWith(["radosgw", "ceph-mon", "ceph-osd", "qemu-img"], "a copy in an object store", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });

  it("follows a folder, keeps chains whole, and goes on after a kill", async () => {
    await using chain = await twoChains([3]);
    const [from, to] = [chain.repository.path, lab.address("of-folder")];
    const ids = idsOf(chain);
    await resultOf(from, to);
    expect(await nbdpull("prune", from, "--keep-last", "1")).toMatchObject({ code: 0 });
    let deleted = 0;
    lab.line.fault = ({ method }) => (method === "DELETE" && ++deleted > 2 ? "never answer" : undefined);
    const running = startNbdpull(["copy", from, to, "--delete", "--keep-last", "1"]);
    await expect.poll(() => deleted).toBeGreaterThan(2);
    running.kill("SIGKILL");
    await running.ended;
    lab.line.fault = () => undefined;
    expect(await nbdpull("verify", to)).toMatchObject({ code: 0 });
    const { followed } = await resultOf(from, to, { remove: { last: 1 } });
    expect(followed?.refused).toBeUndefined();
    expect(await lab.left("of-folder")).toEqual([]);
    const there = await pointsIn(to);
    expect(there).not.toContain(ids[0]);
    await expectCopy(to, chain, there);
    // From there on to another store, and from that one to a folder.
    const [other, back] = [lab.address("of-store"), join(lab.folder, "back")];
    await resultOf(to, other);
    await resultOf(other, back);
    await expectCopy(back, chain, there);
    await takeFull(chain);
    await resultOf(from, to, { remove: { last: 1 } });
    await resultOf(to, other);
    await resultOf(other, back);
    expect(await nbdpull("prune", to, "--keep-last", "1")).toMatchObject({ code: 0 });
    for (const [source, target] of [
      [to, other],
      [other, back],
    ] as const) {
      await resultOf(source, target, { remove: { last: 1 } });
      await expectCopy(target, chain, idsOf(chain).slice(-1));
    }
    // What the store's own prune has dropped stays away, and an empty store empties nothing.
    expect((await resultOf(from, to)).dropped).toEqual([ids.at(-1)]);
    for (const key of await lab.keys(`of-store/${NAME}/`)) {
      await lab.remove(key);
    }
    const refused = await copy(other, back, "--delete", "--keep-last", "1");
    expect(refused).toMatchObject({ code: 4 });
    expect(refused.stderr).toContain("E_SOURCE_EMPTY");
    await expectCopy(back, chain, idsOf(chain).slice(-1));
    expect(await nbdpull("forget", to, NAME, "--force")).toMatchObject({ code: 0 });
    expect(await lab.keys("of-folder/")).toEqual(["of-folder/nbdpull.json"]);
  });
});

async function takeFull(chain: MemoryChain): Promise<void> {
  chain.disk.write(2 * MiB, Buffer.alloc(9000, "a new chain"));
  await chain.take({ full: true, digests: "sha256", granularity: 4096 });
}
