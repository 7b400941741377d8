import { cp, mkdir, readdir, readFile, rm, stat, statfs, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { prune } from "../../src/backup/prune/prune.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { ageLocks, expectCompleted, leftByPrune } from "../support/left-by-prune.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";
import { expectRestorable, pattern } from "../support/pruned-points.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { beginsWith } from "../support/same-bytes.js";
import { describeWith, skipUnable } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const DOMAIN = MemoryChain.domain;
const DYING = join(dirname(fileURLToPath(import.meta.url)), "..", "support", "prune-and-die.mjs");

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(8 * MiB + 577);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

/**
 * Takes points with data, zeroes, discards and parts of clusters, and an empty one; the full one is by far
 * the largest.
 */
async function takePoints(options: { readonly small?: boolean } = {}): Promise<void> {
  const { disk } = chain;
  disk.write(0, pattern(options.small ? 512 * KiB : 6 * MiB, 1));
  await chain.take({ granularity: 4096 });
  for (let round = 1; round <= 5; round += 1) {
    if (round !== 3) {
      disk.write(round * 700 * KiB, pattern(options.small ? 3 * MiB : 200 * KiB, 10 + round));
      disk.write(3 * MiB + round * 4096, pattern(4096, 20 + round));
      disk.writeZeroes(round * 300 * KiB, 100 * KiB);
      disk.discard(5 * MiB + round * 64 * KiB, 128 * KiB);
      disk.write(8 * MiB + 100, pattern(400, round));
    }
    await chain.take({ granularity: 4096 });
  }
}

/** Every expected point exists, is sound, and restores with nbdpull and with stock QEMU. */
async function expectPoints(path: string, ids: readonly string[], restored = ids): Promise<void> {
  await expectRestorable(chain, path, ids, restored);
  const repository = await Repository.open(path);
  for (const id of restored) await expectStock(repository, await repository.point(DOMAIN, id));
}

async function expectStock(repository: Repository, point: Manifest): Promise<void> {
  const image = join(repository.pointFolder(DOMAIN, point.id), point.disks[0]?.file ?? "");
  const theirs = join(chain.folder, "theirs.raw");
  await qemuImg("convert", "-O", "raw", image, theirs);
  expect(beginsWith(theirs, await chain.contentOf(point.id))).toBe(true);
}

const lastIds = (count: number): string[] => chain.points.slice(-count).map(({ id }) => id);

describeWith(["qemu-img"], "prune", () => {
  it.each([
    { name: "an old image that is large", small: false, base: "the oldest" },
    { name: "a young image that is large", small: true, base: "a younger one" },
  ])("writes only what the larger image lacks: $name", async ({ small, base }) => {
    await takePoints({ small });
    const [first] = chain.points;
    const result = await prune({
      repository: chain.repository,
      domain: DOMAIN,
      retention: { last: 2 },
      dryRun: false,
      sync: false,
    });
    expect(result.merges).toHaveLength(1);
    expect(result.merges[0]?.base === first?.id ? "the oldest" : "a younger one").toBe(base);
    expect(result.writtenBytes).toBeLessThan(small ? 8 * MiB : 1.5 * MiB);
    expect(result.freedBytes).toBeGreaterThan(0);
    await expectPoints(chain.repository.path, lastIds(2));
    for (const point of chain.points.slice(-2)) await qemuImg("check", chain.pathOf(point, "vda.qcow2"));
  });

  it("reuses the space that earlier prunes left, so that a chain that is pruned every day does not grow", async () => {
    await takePoints();
    const sizes: number[] = [];
    for (let day = 0; day < 8; day += 1) {
      chain.disk.write((day % 5) * MiB, pattern(512 * KiB, 100 + day));
      await chain.take({ granularity: 4096 });
      await prune({
        repository: chain.repository,
        domain: DOMAIN,
        retention: { last: 3 },
        dryRun: false,
        sync: false,
      });
      const [oldest] = lastIds(3);
      sizes.push((await stat(join(chain.repository.pointFolder(DOMAIN, oldest ?? ""), "vda.qcow2"))).size);
      await expectPoints(chain.repository.path, lastIds(3), lastIds(1));
    }
    // Tables are appended each time: a few clusters, compared with half a megabyte of new data each day.
    expect((sizes.at(-1) ?? 0) - (sizes[3] ?? 0)).toBeLessThan(4 * MiB);
  }, 480_000);

  it("can be killed at every step: all kept points restore at once, and the next prune completes it", async () => {
    await takePoints();
    const kept = lastIds(3);
    const pruned = { domain: DOMAIN, retention: { last: 3 }, dryRun: false, sync: false } as const;
    const left = await leftByPrune({ ...pruned, repository: chain.repository }, chain.folder);
    expect(left.length).toBeGreaterThan(9);
    await expectCompleted(left, pruned, kept, expectPoints);
  }, 600_000);

  it("keeps what a newer version has written into the manifest", async () => {
    await takePoints({ small: true });
    const newest = chain.points.at(-1) as Manifest;
    const disks = newest.disks.map((disk) => ({ ...disk, later: { too: 2 } }));
    await chain.rewrite(newest.id, { later: [1], disks });
    expect(await nbdpull("prune", chain.repository.path, "--keep-last", "1")).toMatchObject({ code: 0 });
    const text = await readFile(chain.pathOf(newest, "point.json"), "utf8");
    expect(JSON.parse(text)).toMatchObject({
      ...{ level: "full", later: [1], disks: [{ mode: "full", later: { too: 2 } }] },
    });
    await expectPoints(chain.repository.path, [newest.id]);
  });

  it("finishes a journal of version 0.1, which has no counts, and notices a torn list by those of its own", async () => {
    await takePoints();
    const kept = lastIds(3);
    const pruned = { domain: DOMAIN, retention: { last: 3 }, dryRun: false, sync: false } as const;
    const left = await leftByPrune({ ...pruned, repository: chain.repository }, chain.folder);
    const { path } = left.find(({ step }) => step === "overwrite") ?? { path: "" };
    await ageLocks(join(path, DOMAIN));
    const prepared = join(path, DOMAIN, ".prune");
    const list = (await readdir(prepared)).find((name) => name.endsWith(".overwrites")) ?? "";
    const whole = await readFile(join(prepared, list));
    await writeFile(join(prepared, list), whole.subarray(0, whole.length - 32));
    const options = { ...pruned, repository: await Repository.open(path) };
    await expect(prune(options)).rejects.toMatchObject({ code: "E_PRUNE_JOURNAL" });
    await writeFile(join(prepared, list), whole);
    const journal = await readFile(join(prepared, "journal.json"), "utf8");
    const without = journal.replace(/,\s*"copies": \d+/g, "");
    expect(without).not.toBe(journal);
    await writeFile(join(prepared, "journal.json"), without);
    await prune(options);
    expect((await readdir(join(path, DOMAIN))).sort()).toEqual(kept);
    await expectPoints(path, kept);
  });

  it("reports the same points before and after a prune died with everything prepared", async () => {
    await takePoints();
    const { path } = chain.repository;
    const kept = lastIds(3);
    const steps = await execa("node", [DYING, path, DOMAIN, "3", "3"], { reject: false });
    expect(steps.stderr).toMatch(/overwrite$/);
    await ageLocks(join(path, DOMAIN));
    const planned = await nbdpull("prune", path, "--keep-last", "3", "--dry-run", "--json");
    expect(planned.code, planned.stderr).toBe(0);
    expect(planned.json()).toMatchObject({
      domains: [{ points: kept.map((id) => ({ id, action: "keep" })), merges: [] }],
    });
    // A point taken now is based on an image that the prune is going to replace.
    chain.disk.write(2 * MiB, pattern(300 * KiB, 77));
    await chain.take({ granularity: 4096 });
    await expectPoints(path, lastIds(4));
    const done = await nbdpull("prune", path, "--keep-last", "2", "--json");
    expect(done.code, done.stderr).toBe(0);
    expect((await readdir(join(path, DOMAIN))).sort()).toEqual(lastIds(2));
    await expectPoints(path, lastIds(2));
  });

  it("changes nothing after it was suspended and others have gone on", async () => {
    await takePoints();
    const original = chain.repository.path;
    const kept = lastIds(2);
    const counted = join(chain.folder, "counted");
    await cp(original, counted, { recursive: true });
    const { stdout } = await execa("node", [DYING, counted, DOMAIN, "3", "-1", "SIGSTOP"]);
    const { steps } = JSON.parse(stdout) as { steps: number };
    await rm(counted, { recursive: true });
    for (let step = 1; step < steps - 1; step += Math.ceil(steps / 5)) {
      const copy = join(chain.folder, `suspended-${step}`);
      await cp(original, copy, { recursive: true });
      const suspended = execa("node", [DYING, copy, DOMAIN, "3", String(step), "SIGSTOP"], { reject: false });
      const state = async (): Promise<string> => await readFile(`/proc/${suspended.pid}/stat`, "utf8");
      await expect.poll(state).toContain(") T ");
      await ageLocks(join(copy, DOMAIN));
      const repository = await Repository.open(copy);
      const options = { repository, domain: DOMAIN, dryRun: false, sync: false };
      await prune({ ...options, retention: { last: 3 } });
      await prune({ ...options, retention: { last: 2 } });
      await sleep(1_100);
      suspended.kill("SIGCONT");
      const ended = await suspended;
      expect(ended.stderr).toContain("E_LOCK_LOST");
      expect((await readdir(join(copy, DOMAIN))).sort(), ended.stderr).toEqual(kept);
      await expectPoints(copy, kept);
      for (const id of kept) await qemuImg("check", join(copy, DOMAIN, id, "vda.qcow2"));
      await rm(copy, { recursive: true });
    }
  }, 600_000);

  it("leaves every kept point unchanged on a full disk, and completes when there is space", async (context) => {
    await takePoints();
    const small = join(chain.folder, "small");
    await mkdir(small);
    const mounted = await execa("mount", ["-t", "tmpfs", "-o", "size=64M", "small", small], {
      reject: false,
    });
    if (mounted.failed) skipUnable(context, "mount", "only root may mount");
    try {
      const path = join(small, "repo");
      await cp(chain.repository.path, path, { recursive: true });
      const repository = await Repository.open(path);
      const options = { repository, domain: DOMAIN, retention: { last: 2 }, dryRun: false, sync: false };
      await execa("sh", ["-c", `head -c 200M /dev/zero > ${join(small, "filler")} || true`], {
        reject: false,
      });
      await expect(prune(options)).rejects.toMatchObject({
        code: expect.stringMatching(/^(?:ENOSPC|E_NO_ROOM)$/),
      });
      await expectPoints(path, lastIds(6));
      // Space for the data, and for some of the tables and the rest: each table is four steps or more.
      const { writtenBytes } = await prune({ ...options, dryRun: true });
      const codes: (string | undefined)[] = [];
      for (let more = 0; more <= 2 * MiB; more += 16 * KiB) {
        await rm(join(small, "filler"));
        const { bavail, bsize } = await statfs(small);
        const filled = String(bavail * bsize - writtenBytes - more);
        await execa("fallocate", ["--length", filled, join(small, "filler")]);
        const code = await prune(options).then(
          () => undefined,
          (error: NodeJS.ErrnoException) => error.code,
        );
        codes.push(code);
        expect([undefined, "ENOSPC", "E_NO_ROOM"]).toContain(code);
        await expectPoints(path, lastIds(2));
        if (code === undefined) break;
      }
      expect(codes).toContain("ENOSPC");
      await rm(join(small, "filler"));
      await prune(options);
      await expectPoints(path, lastIds(2));
    } finally {
      await execa("umount", [small]);
    }
  });

  it("can be killed at any time", async () => {
    await takePoints();
    const original = chain.repository.path;
    const kept = lastIds(3);
    let killedHalfWay = 0;
    for (let round = 0; round < 6; round += 1) {
      const copy = join(chain.folder, `killed-at-${round}`);
      await cp(original, copy, { recursive: true });
      const dying = execa("node", [DYING, copy, DOMAIN, "3", "-1"], { reject: false });
      const begun = async (): Promise<boolean> => (await readdir(join(copy, DOMAIN))).includes(".prune");
      const ended = dying.then(() => true);
      while (!(await begun()) && !(await Promise.race([ended, sleep(5, false)])));
      await sleep(round * 25);
      dying.kill("SIGKILL");
      if ((await dying).signal === "SIGKILL" && (await begun())) killedHalfWay += 1;
      await ageLocks(join(copy, DOMAIN));
      await expectPoints(copy, kept);
      await ageLocks(join(copy, DOMAIN));
      await prune({
        repository: await Repository.open(copy),
        domain: DOMAIN,
        retention: { last: 2 },
        dryRun: false,
        sync: false,
      });
      expect((await readdir(join(copy, DOMAIN))).sort()).toEqual(kept.slice(1));
      await expectPoints(copy, kept.slice(1));
      for (const id of kept.slice(1)) await qemuImg("check", join(copy, DOMAIN, id, "vda.qcow2"));
      await rm(copy, { recursive: true });
    }
    expect(killedHalfWay).toBeGreaterThan(0);
  }, 600_000);

  it("changes nothing if an image that it would merge is damaged", async () => {
    await takePoints();
    const [, second] = chain.points;
    const path = chain.pathOf(second as Manifest, "vda.qcow2");
    const sound = await readFile(path);
    const bytes = Buffer.from(sound);
    // A byte in every sector of the first clusters.
    for (let at = 64 * KiB; at < 320 * KiB; at += 512) bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at);
    await writeFile(path, bytes);
    const ran = await nbdpull("prune", chain.repository.path, "--keep-last", "2", "--json");
    expect(ran.code).toBe(3);
    expect(ran.json()).toMatchObject({ error: { code: "E_DAMAGED", point: second?.id } });
    expect(await chain.repository.pointIds(DOMAIN)).toHaveLength(6);
    expect(
      (await readdir(join(chain.repository.path, DOMAIN))).filter((name) => name.startsWith(".")),
    ).toEqual([]);
    await writeFile(path, sound);
    await expectPoints(chain.repository.path, lastIds(6));
  });

  it("keeps a point that several kept points are based on, and says which", async () => {
    chain.disk.write(0, pattern(MiB, 1));
    await chain.take();
    const [full] = chain.points;
    for (let i = 0; i < 2; i += 1) {
      chain.disk.write(2 * MiB + i * MiB, pattern(300 * KiB, i));
      // Both are based on the full point, and the second one's bitmap has what the first one changed.
      if (i === 1) chain.disk.writeZeroes(2 * MiB, 300 * KiB);
      chain.points.splice(1);
      const second = await chain.take();
      chain.points[0] = full as Manifest;
      if (i === 0) chain.disk.write(0, pattern(10, 9));
      void second;
    }
    const ids = await chain.repository.pointIds(DOMAIN);
    const ran = await nbdpull("prune", chain.repository.path, "--keep-last", "2", "--json");
    expect(ran.code).toBe(0);
    expect(ran.json()).toMatchObject({
      domains: [
        {
          points: [
            { id: ids[0], action: "keep", reasons: [`${ids[1]} is based on it`, `${ids[2]} is based on it`] },
            {},
            {},
          ],
        },
      ],
    });
    expect(await chain.repository.pointIds(DOMAIN)).toEqual(ids);
  });

  it("waits for a running restore, and blocks no reader", async () => {
    await takePoints();
    const target = join(chain.folder, "slow.raw");
    const oldest = chain.points[1]?.id ?? "";
    const args = ["restore", chain.repository.path, "--at", oldest, "--disk", "vda", "--to", target];
    const restore = startNbdpull([...args, "--limit-rate", "2M", "--request-size", "64K"]);
    const reads = async (): Promise<boolean> =>
      (await readdir(join(chain.repository.path, DOMAIN))).some((name) => name.startsWith(".reader-"));
    await expect.poll(reads).toBe(true);
    const pruning = nbdpull("prune", chain.repository.path, "--keep-last", "2");
    await sleep(500);
    expect((await nbdpull("points", chain.repository.path)).code).toBe(0);
    expect((await restore.ended)?.code).toBe(0);
    expect((await readFile(target)).equals(await chain.contentOf(oldest))).toBe(true);
    expect((await pruning).code).toBe(0);
    await expectPoints(chain.repository.path, lastIds(2));
  }, 480_000);

  it("reports what it would do, asks for something to keep, and refuses invalid arguments", async () => {
    await takePoints();
    const { path } = chain.repository;
    const planned = await nbdpull("prune", path, "--keep-last", "3", "--dry-run");
    expect(planned.stdout).toContain("would drop 3 of 6 points");
    expect(await chain.repository.pointIds(DOMAIN)).toHaveLength(6);
    expect((await nbdpull("prune", path)).code).toBe(2);
    expect((await nbdpull("prune", path, "--keep-last", "0")).code).toBe(2);
    expect((await nbdpull("prune", path, "--keep-last", "some")).code).toBe(2);
    expect((await nbdpull("prune", path, "other", "--keep-last", "1")).code).toBe(4);
    const json = (await nbdpull("prune", path, "--keep-last", "3", "--dry-run", "--json")).json();
    expect(json).toMatchObject({ dryRun: true, domains: [{ domain: DOMAIN, freedBytes: null }] });
  });
});
