/**
 * Points in Ceph that take over what they need of dropped ones: the store copies what it can. qemu-img judges
 * what lies there. `NBDPULL_KILL_ROUNDS=20` kills at every step, and at random moments too.
 */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { PutObjectRetentionCommand } from "@aws-sdk/client-s3";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { prune as prunePoints } from "../../src/backup/prune/prune.js";
import type { PruneResult } from "../../src/backup/prune/prune-options.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { StoreFault } from "../support/breaking-store.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";
import { noise } from "../support/noise.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;
const KILL_ROUNDS = Number(process.env["NBDPULL_KILL_ROUNDS"] ?? "0");
const DIE = fileURLToPath(new URL("../support/prune-and-die.mjs", import.meta.url));
/**
 * The step at which a kill leaves most to do: the new image has its name, and the manifest names the old one.
 */
const HARDEST = "replaced vda.qcow2";

describeWith(
  ["radosgw", "ceph-mon", "ceph-osd", "qemu-img"],
  "a prune that merges in an object store",
  () => {
    let lab: StoreLab;
    withStoreLab((started) => {
      lab = started;
    });
    let chain: MemoryChain;
    /** Where the chain lies. */
    let home: string;

    /** A full point and increments; the disk ends inside a sector, and some clusters are defined in part. */
    beforeAll(async () => {
      home = lab.bucket;
      chain = await newChain(lab.address("chain"));
    });
    afterAll(async () => {
      await chain?.[Symbol.asyncDispose]();
    });

    async function newChain(address: string, compress?: "deflate"): Promise<MemoryChain> {
      const made = await MemoryChain.start(40 * MiB + 577, address);
      made.disk.write(0, noise(24 * MiB, 1));
      await made.take({ full: true, digests: "sha256", granularity: 4096, ...(compress && { compress }) });
      for (const round of [1, 2, 3, 4]) {
        made.disk.write(round * 3 * MiB, noise(6 * MiB, round));
        made.disk.write(30 * MiB + round * 700_000, noise(300_000, round));
        made.disk.write(25 * MiB + round * 4096, noise(4096, round));
        made.disk.writeZeroes(round * 2_000_000, 500_000);
        await made.take({ digests: "sha256", granularity: 4096, ...(compress && { compress }) });
      }
      return made;
    }

    const copyOf = (name: string): Promise<string> => lab.copyOf("chain", home, name);

    /**
     * Holds what lies there against what the disk was: by stock QEMU in a folder; if half, by restores too.
     */
    async function judge(name: string, judged = chain, isHalf = false): Promise<number> {
      const address = lab.address(name);
      const path = await lab.download(name);
      const ids = ((await nbdpull("points", address, "--json")).json() as { id: string }[]).map(
        ({ id }) => id,
      );
      await judged.expectStock(path, ids);
      for (const id of isHalf ? ids : []) {
        const target = join(lab.folder, name, `restored-${id}`);
        expect(
          await nbdpull("restore", address, NAME, "--at", id, "--format", "raw", "--to", target),
        ).toMatchObject({ code: 0 });
        await execa("cmp", [join(target, "vda.raw"), await judged.rawFile(id)]);
      }
      expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
      return ids.length;
    }

    const prune = (address: string, ...more: readonly string[]) =>
      nbdpull("prune", address, "--json", "--keep-last", "3", ...more);
    const resultOf = (ran: { json(): unknown }): PruneResult => {
      const [result] = (ran.json() as { domains: PruneResult[] }).domains;
      if (!result || "error" in result) throw new Error(JSON.stringify(result));
      return result;
    };
    const filesOf = async (name: string): Promise<string[]> =>
      (await lab.keys(`${name}/${NAME}/2`)).map((key) => key.slice(key.lastIndexOf("/") + 1));

    it("keeps what a newer version has written into the manifest", async () => {
      const address = await copyOf("newer");
      const key = `newer/${NAME}/${chain.points[4]?.id}/point.json`;
      const point = JSON.parse(`${await lab.read(key)}`) as { disks: object[] };
      const disks = point.disks.map((disk) => ({ ...disk, later: { too: 2 } }));
      await lab.put(key, JSON.stringify({ ...point, later: [1], disks }));
      expect(await nbdpull("prune", address, "--keep-last", "1")).toMatchObject({ code: 0 });
      expect(JSON.parse(`${await lab.read(key)}`)).toMatchObject({
        ...{ level: "full", later: [1], disks: [{ mode: "full", later: { too: 2 } }] },
      });
    });

    it("takes over what it needs of dropped points, most of it copied by the store", async () => {
      const address = await copyOf("whole");
      const dry = resultOf(await prune(address, "--dry-run"));
      const ran = await prune(address);
      expect(ran).toMatchObject({ code: 0 });
      const result = resultOf(ran);
      expect(result.points.map(({ action }) => action)).toEqual(["drop", "drop", "keep", "keep", "keep"]);
      expect(dry).toMatchObject({ points: result.points, copiedBytes: result.copiedBytes });
      expect(dry.writtenBytes).toBeGreaterThanOrEqual(result.writtenBytes);
      expect(result.copiedBytes).toBeGreaterThan(result.writtenBytes);
      expect(await lab.left("whole")).toEqual([]);
      expect(await filesOf("whole")).toHaveLength(9);
      expect(await judge("whole")).toBe(3);
      // A merged point is merged again.
      expect(await nbdpull("prune", address, "--keep-last", "1")).toMatchObject({ code: 0 });
      expect(await lab.left("whole")).toEqual([]);
      expect(await filesOf("whole")).toHaveLength(3);
      expect(await judge("whole")).toBe(1);
      const target = join(lab.folder, "restored");
      expect(await nbdpull("restore", address, NAME, "--format", "raw", "--to", target)).toMatchObject({
        code: 0,
      });
      const content = await chain.rawFile(chain.points.at(-1)?.id ?? "");
      await execa("cmp", [join(target, "vda.raw"), content]);
    });

    it("leaves compressed clusters as they are", async () => {
      const address = lab.address("compressed");
      await using compressed = await newChain(address, "deflate");
      expect(await prune(address)).toMatchObject({ code: 0 });
      expect(await judge("compressed", compressed)).toBe(3);
      expect(await lab.left("compressed")).toEqual([]);
    });

    it("has the store copy nothing of disks without digests, which nobody could compare", async () => {
      const address = lab.address("plain");
      await using plain = await MemoryChain.start(16 * MiB, address);
      plain.disk.write(0, noise(12 * MiB, 1));
      await plain.take({ digests: undefined });
      plain.disk.write(MiB, noise(MiB, 2));
      await plain.take({ digests: undefined });
      const [merged] = resultOf(await nbdpull("prune", address, "--json", "--keep-last", "1")).merges;
      expect(merged).toMatchObject({ copiedBytes: 0, writtenBytes: 12 * MiB });
      expect(await judge("plain", plain)).toBe(1);
    });

    async function die(address: string, step: string | number): Promise<string[]> {
      const died = await execa(process.execPath, [DIE, address, NAME, "3", `${step}`], { reject: false });
      return died.stderr.split("\n").filter((line) => /^[a-z]+ [a-z]/.test(line));
    }

    it("is undone by the next run, or finished, whichever step it died at", async () => {
      const steps = await die(await copyOf("lived"), -1);
      expect(steps).toContain(HARDEST);
      for (const [step, name] of steps.entries()) {
        if (KILL_ROUNDS === 0 && name !== HARDEST) continue;
        const address = await copyOf(`died-${step}`);
        expect(await die(address, step)).toHaveLength(step + 1);
        expect(await judge(`died-${step}`, chain, name === HARDEST)).toBeGreaterThanOrEqual(3);
        expect(await prune(address)).toMatchObject({ code: 0 });
        expect(await lab.left(`died-${step}`)).toEqual([]);
        expect(await filesOf(`died-${step}`)).toHaveLength(9);
        expect(await judge(`died-${step}`)).toBe(3);
      }
      for (let round = 0; round < KILL_ROUNDS; round += 1) {
        const name = `random-${round}`;
        const address = await copyOf(name);
        const run = startNbdpull(["prune", address, "--keep-last", "3"]);
        while ((await lab.half(name)).length === 0) await sleep(20);
        await sleep(Math.random() * 1_500);
        run.kill("SIGKILL");
        await run.ended;
        expect(await judge(name)).toBeGreaterThanOrEqual(3);
        expect(await prune(address)).toMatchObject({ code: 0 });
        expect(await lab.left(name)).toEqual([]);
        expect(await filesOf(name)).toHaveLength(9);
        expect(await judge(name)).toBe(3);
      }
    }, 1_200_000);

    it("is committed although a signal comes while it is, and no image is copied back", async () => {
      const address = await copyOf("interrupted");
      const stop = new AbortController();
      const steps: string[] = [];
      const pruning = prunePoints({
        repository: await Repository.open(address, { signal: stop.signal }),
        ...{ domain: NAME, retention: { last: 3 }, dryRun: false, sync: true, signal: stop.signal },
        onStep: (step) => {
          steps.push(step);
          if (step === "manifest aside") stop.abort(new Error("enough"));
        },
      });
      await expect(pruning).rejects.toThrow("enough");
      expect(steps).toEqual(expect.arrayContaining(["manifest aside", "manifest merged", "aside removed"]));
      expect(await lab.left("interrupted")).toEqual([]);
      const key = `interrupted/${NAME}/${chain.points[2]?.id}/point.json`;
      expect(JSON.parse(`${await lab.read(key)}`)).toMatchObject({ level: "full" });
      expect(await judge("interrupted")).toBe(5);
    });

    it("goes on where requests fail and answers are lost, and changes nothing where a store copies wrong", async () => {
      const address = await copyOf("broken");
      const there = await lab.keys("broken/");
      const shorter: StoreFault = { copyInstead: (first, last) => [first, last - 65_536] };
      const elsewhere: StoreFault = { copyInstead: (first, last) => [first + 65_536, last + 65_536] };
      for (const fault of [shorter, elsewhere]) {
        let copies = 0;
        lab.line.fault = ({ method, url }) =>
          method === "PUT" && url.includes("partNumber=2&") && copies++ === 0 ? fault : undefined;
        const ran = await prune(address);
        expect(ran.code).not.toBe(0);
        expect(copies).toBeGreaterThan(0);
        lab.line.fault = () => undefined;
        expect(await lab.left("broken")).toEqual([]);
        expect(await lab.keys("broken/")).toEqual(there);
      }
      let failed = 0;
      let lost = 0;
      lab.line.fault = ({ method, url }) => {
        if (method === "PUT" && url.includes("partNumber") && failed++ < 3)
          return { answer: 500, code: "InternalError" };
        if (method === "PUT" && url.includes("/point.json") && lost++ < 2) return "lose answer";
        if (method === "POST" && url.includes("uploadId") && lost++ < 5) return "lose answer";
        return undefined;
      };
      expect(await prune(address)).toMatchObject({ code: 0 });
      expect(lost).toBeGreaterThan(5);
      lab.line.fault = () => undefined;
      expect(await lab.left("broken")).toEqual([]);
      expect(await judge("broken")).toBe(3);
    });

    it("merges nothing that can't be deleted yet, and tells until when old versions stay", async () => {
      const Bucket = await lab.makeBucket("locked", { ObjectLockEnabledForBucket: true });
      const address = lab.address("here", Bucket);
      await using locked = await MemoryChain.start(8 * MiB, address);
      for (const round of [1, 2]) {
        locked.disk.write(round * MiB, noise(2 * MiB, round));
        await locked.take({ digests: "sha256" });
      }
      const Key = `here/${NAME}/${locked.points[0]?.id}/vda.qcow2`;
      const lock = async (until: number): Promise<void> => {
        const Retention = { Mode: "GOVERNANCE", RetainUntilDate: new Date(until) } as const;
        await lab.client.send(
          new PutObjectRetentionCommand({ Bucket, Key, Retention, BypassGovernanceRetention: true }),
        );
      };
      const pruned = () => nbdpull("prune", address, "--keep-last", "1", "--json");
      // Ceph can't do it where there are versions.
      const unable = resultOf(await pruned());
      expect(unable.points[0]?.reasons).toContain("the store can't replace on condition");
      expect(unable.merges).toEqual([]);
      // As a store that can: nobody else writes there.
      lab.line.fault = () => "keep conditions";
      const marker = (await lab.read("here/nbdpull.json", Bucket)).toString();
      await lab.put("here/nbdpull.json", marker.replace(/("conditional\w+":) false/g, "$1 true"), Bucket);
      const tomorrow = Date.now() + 86_400_000;
      await lock(tomorrow);
      const kept = resultOf(await pruned());
      const day = new Date(tomorrow).toISOString().slice(0, 10);
      const reasons = expect.arrayContaining([expect.stringContaining(`locked until ${day}`)]);
      expect(kept.points).toMatchObject([{ action: "keep", reasons }, { action: "keep" }]);
      expect(kept.merges).toEqual([]);
      await lock(Date.now() + 1_000);
      await sleep(1_100);
      const ran = await pruned();
      expect(resultOf(ran)).toMatchObject({ points: [{ action: "drop" }, { action: "keep" }] });
      expect(ran.stderr).toMatch(/images that were replaced .* until a lifecycle rule/);
      expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
    });
  },
);
