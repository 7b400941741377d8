/** Points written to an object store: Ceph, with qemu-img as the judge of what lies there. */
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  DeleteObjectCommand,
  ListObjectVersionsCommand,
  PutObjectLockConfigurationCommand,
} from "@aws-sdk/client-s3";
import { execa } from "execa";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import type { CopyResult } from "../../src/backup/copy/copy-points.js";
import { forgetBeside, noteBeside } from "../../src/backup/live/beside-point.js";
import type { PruneResult } from "../../src/backup/prune/prune-options.js";
import { forgetLive, noteLive } from "../../src/backup/repository/live-note.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { StoreFault } from "../support/breaking-store.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { noise } from "../support/noise.js";
import { StoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;

describeWith(
  ["radosgw", "ceph-mon", "ceph-osd", "qemu-img"],
  "a repository in an object store that is written",
  () => {
    let lab: StoreLab;

    beforeAll(async () => {
      lab = await StoreLab.start();
    });
    afterAll(async () => {
      await lab?.[Symbol.asyncDispose]();
    });
    beforeEach(async () => {
      await lab.begin();
    });

    /** Holds every point of what was copied to a folder against what the disk was. */
    async function judge(path: string, chain: MemoryChain): Promise<void> {
      for (const { id } of chain.points) {
        const expected = join(lab.folder, `${id}.raw`);
        await writeFile(expected, await chain.contentOf(id));
        const image = join(path, NAME, id, "vda.qcow2");
        await execa("qemu-img", ["check", image]);
        await execa("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", image, expected]);
      }
    }

    /** A full point and increments, of a disk that ends inside a sector. */
    async function newChain(path?: string, size = 40 * MiB + 577): Promise<MemoryChain> {
      const chain = await MemoryChain.start(size, path);
      chain.disk.write(0, noise(21 * MiB, 1));
      await chain.take({ full: true, digests: "sha256", granularity: 4096 });
      for (const round of [1, 2]) {
        chain.disk.write(round * 700_000, noise(200_000, round));
        chain.disk.write(25 * MiB + round * 4096, noise(4096, round));
        chain.disk.writeZeroes(round * 300_000, 100_000);
        await chain.take({
          digests: "sha256",
          granularity: 4096,
          ...(round === 2 && { compress: "deflate" as const }),
        });
      }
      return chain;
    }

    describe("points that are taken", () => {
      it("lie there as stock QEMU reads them, and restore and verify from there", async () => {
        const address = lab.address("taken");
        await using chain = await newChain(address);
        expect(await lab.left("taken")).toEqual([]);
        const verified = await nbdpull("verify", address, "--json");
        expect(verified).toMatchObject({ code: 0 });
        const path = await lab.download("taken");
        await judge(path, chain);
        expect(await nbdpull("verify", path)).toMatchObject({ code: 0 });
        // Zeroes take no room.
        const full = join(path, NAME, chain.points[0]?.id ?? "", "vda.qcow2");
        expect((await stat(full)).size).toBeLessThan(22 * MiB);
      });
    });

    describe("points that are copied", () => {
      let chain: MemoryChain;
      beforeAll(async () => {
        chain = await newChain();
      });
      afterAll(async () => {
        await chain?.[Symbol.asyncDispose]();
      });

      const copy = async (to: string, ...more: readonly string[]) =>
        await nbdpull("copy", chain.repository.path, to, "--create", "--json", ...more);
      const statesOf = (ran: { json(): unknown }): string[] =>
        (ran.json() as { domains: CopyResult[] }).domains[0]?.points.map(({ state }) => state) ?? [];

      it("are the same files, and go on from there to another store and back", async () => {
        const [one, two] = [lab.address("copied/one"), lab.address("copied/two")];
        const first = await copy(one);
        expect(first).toMatchObject({ code: 0 });
        expect(statesOf(first)).toEqual(["copied", "copied", "copied"]);
        expect(await nbdpull("copy", one, two, "--create", "--json")).toMatchObject({ code: 0 });
        expect(await lab.left("copied")).toEqual([]);
        const path = await lab.download("copied/two");
        await judge(path, chain);
        await execa("diff", [
          "-r",
          "-x",
          ".copied.json",
          join(path, NAME),
          join(chain.repository.path, NAME),
        ]);
        expect(await nbdpull("verify", two)).toMatchObject({ code: 0 });
        const again = await copy(one);
        expect(statesOf(again)).toEqual(["there", "there", "there"]);
      });

      it("are gone on with after a kill, and nothing is left of the ones that were not whole", async () => {
        const address = lab.address("killed");
        expect(await nbdpull("init", address)).toMatchObject({ code: 0 });
        let parts = 0;
        lab.line.fault = ({ method, url }) => {
          if (method === "PUT" && url.includes("partNumber")) parts += 1;
          return parts >= 2 && url.includes("partNumber") ? "never answer" : undefined;
        };
        const copying = startNbdpull(["copy", chain.repository.path, address]);
        await expect.poll(() => parts).toBeGreaterThan(1);
        copying.kill("SIGKILL");
        await copying.ended;
        lab.line.fault = () => undefined;
        const half = await lab.left("killed");
        expect(half.filter((each) => each.startsWith("upload of "))).toHaveLength(1);
        // The lease, and the note of the point.
        expect(half.filter((each) => /\/\.[^/]*$/.test(each))).toHaveLength(2);
        expect(await nbdpull("points", address)).toMatchObject({ code: 0, stdout: "no restore points yet" });
        const foreign = `killed/${NAME}/20200101T000000.000Z/vda.qcow2`;
        await lab.put(foreign, "being copied there");
        // The lease of a process of this host that was killed is not waited for: that would end before the lease.
        expect(statesOf(await copy(address))).toEqual(["copied", "copied", "copied"]);
        // Nothing is removed that no run of ours has begun.
        expect(await lab.left("killed")).toEqual([foreign]);
        expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
      });

      it("that are damaged are left out, and nothing of them lies there", async () => {
        await using damaged = await chain.copy();
        const path = join(damaged.repository.path, NAME, damaged.points[0]?.id ?? "", "vda.qcow2");
        const bytes = await readFile(path);
        bytes.writeUInt8(bytes.readUInt8(15 * MiB) ^ 1, 15 * MiB);
        await writeFile(path, bytes);
        const ran = await nbdpull(
          "copy",
          damaged.repository.path,
          lab.address("left-out"),
          "--create",
          "--json",
        );
        expect(ran).toMatchObject({ code: 3 });
        expect(statesOf(ran)).toEqual(["damaged", "damaged", "damaged"]);
        expect(await lab.keys(`left-out/${NAME}/`)).toEqual([]);
      });
    });

    describe("a prune", () => {
      const prune = async (address: string, ...more: readonly string[]) =>
        await nbdpull("prune", address, "--keep-last", "2", "--json", ...more);
      const actionsOf = (ran: { json(): unknown }): string[] =>
        (ran.json() as { domains: PruneResult[] }).domains[0]?.points.map(({ action }) => action) ?? [];

      /** Two chains: a full point with an increment, and another. */
      async function twoChains(address: string): Promise<MemoryChain> {
        const chain = await MemoryChain.start(12 * MiB, address);
        for (const round of [1, 2]) {
          chain.disk.write(round * MiB, noise(3 * MiB, round));
          await chain.take({ full: true, digests: "sha256", granularity: 4096 });
          chain.disk.write(round * 2 * MiB, noise(MiB, round + 4));
          await chain.take({ digests: "sha256", granularity: 4096 });
        }
        return chain;
      }

      it("removes chains that nothing kept is based on, and goes on with what a killed one has left", async () => {
        const address = lab.address("pruned");
        await using chain = await twoChains(address);
        const dry = await prune(address, "--dry-run");
        expect(actionsOf(dry)).toEqual(["drop", "drop", "keep", "keep"]);
        let deleted = 0;
        lab.line.fault = ({ method }) => (method === "DELETE" && ++deleted > 2 ? "never answer" : undefined);
        const pruning = startNbdpull(["prune", address, "--keep-last", "2"]);
        await expect.poll(() => deleted).toBeGreaterThan(2);
        pruning.kill("SIGKILL");
        await pruning.ended;
        lab.line.fault = () => undefined;
        expect(await lab.left("pruned")).not.toEqual([]);
        expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
        expect(actionsOf(await prune(address))).toEqual(["drop", "keep", "keep"]);
        expect(await lab.left("pruned")).toEqual([]);
        for (const { id } of chain.points.slice(0, 2))
          expect(await lab.keys(`pruned/${NAME}/${id}`)).toEqual([]);
        chain.points.splice(0, 2);
        await judge(await lab.download("pruned"), chain);
      });

      it("keeps a point that a guest runs on, also one that begins while points are removed", async () => {
        const address = lab.address("lived");
        await using chain = await twoChains(address);
        const [base = "", lived = ""] = chain.points.map(({ id }) => id);
        const guest = { uuid: "2b1f9c0e-6a53-4c39-9a3e-5d1f6f0a7c11", disks: "/var/lib/libvirt/images" };
        const begin = async (): Promise<void> => {
          await using records = await chain.repository.holdRecords(NAME, lived);
          await noteLive(records, guest);
        };
        const notes = `lived/${NAME}/${lived}/.live.`;
        let begun: Promise<void> | undefined;
        lab.line.fault = ({ method, url }) => {
          if (method !== "PUT" || begun || !url.includes(`.${lived}.partial`)) return undefined;
          begun = begin();
          return { answer: 503, code: "SlowDown" };
        };
        const refused = await prune(address);
        expect(refused).toMatchObject({ code: 4 });
        expect(refused.stdout + refused.stderr).toContain("E_LIVE");
        await begun;
        lab.line.fault = () => undefined;
        expect(await lab.left("lived")).toEqual([expect.stringContaining(notes)]);
        const kept = (await prune(address)).json() as { domains: PruneResult[] };
        expect(kept.domains[0]?.points).toMatchObject([
          { id: base, action: "keep", reasons: [`${lived} is based on it`] },
          { id: lived, action: "keep", reasons: ["a guest runs on it"] },
          { action: "keep" },
          { action: "keep" },
        ]);
        expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
        await using records = await chain.repository.holdRecords(NAME, lived);
        await forgetLive(records, guest.uuid);
        expect(actionsOf(await prune(address))).toEqual(["drop", "drop", "keep", "keep"]);
        // One that comes too late is told, and leaves nothing.
        await expect(begin()).rejects.toMatchObject({ code: "E_MANIFEST" });
        expect(await lab.keys(`lived/${NAME}/${lived}`)).toEqual([]);
      });

      it("has no guest begin on a point while nobody knows whether a prune removes it", async () => {
        const address = lab.address("unsure");
        await using chain = await MemoryChain.start(MiB, address);
        await chain.take({ full: true });
        const id = chain.points[0]?.id ?? "";
        const warnings: string[] = [];
        const interrupt = new AbortController();
        const repository = await Repository.open(address, { signal: interrupt.signal });
        const beside = {
          ...{ repository, domain: NAME },
          onEvent: ({ message }: { readonly message: string }) => void warnings.push(message),
        };
        const state = { point: id, domain: { name: "guest", uuid: "2b1f9c0e-6a53-4c39-9a3e-5d1f6f0a7c11" } };
        const record = `unsure/${NAME}/${id}/.live.${state.domain.uuid}.json`;
        const begin = (hasRun: boolean): Promise<void> =>
          noteBeside(beside, state, {
            ...{ place: "/var/lib/libvirt/images", hasRun },
            server: { assertUnpruned: async () => undefined },
          });
        const records = (): Promise<string[]> => lab.keys(`unsure/${NAME}/${id}/.live.`);

        // Who may only read restores all the same.
        lab.line.breakFirst(9, /^PUT .*\.live\./, { answer: 403, code: "AccessDenied" });
        await begin(false);
        expect(warnings.splice(0)).toEqual([expect.stringContaining("can't be noted")]);
        lab.line.breakFirst(9, /^GET .*\.partial/, { answer: 400, code: "InvalidRequest" });
        await expect(begin(false)).rejects.toMatchObject({ code: "E_S3_FAILED" });
        await forgetBeside(beside, state);
        expect(await records()).toEqual([]);

        const Key = `unsure/${NAME}/.${id}.partial`;
        const note = JSON.stringify({ state: "removing", nonce: "of a prune that sleeps" });
        await lab.put(Key, note);
        const now = performance.now.bind(performance);
        let slept = 0;
        const clock = vi.spyOn(performance, "now").mockImplementation(() => now() + slept);
        try {
          const aMinute = ({ url }: { readonly url: string }): undefined => {
            if (url.includes(".partial")) slept += 61_000;
          };
          lab.line.fault = aMinute;
          await expect(begin(false)).rejects.toMatchObject({
            name: "PreconditionError",
            code: "E_BEING_REMOVED",
          });
          expect(await records()).toEqual([]);
          await lab.put(record, "{}");
          await begin(true);
          expect(warnings.splice(0)).toEqual([expect.stringContaining("is being removed by a prune")]);
          expect(await records()).toEqual([record]);
        } finally {
          clock.mockRestore();
        }

        interrupt.abort(new Error("interrupted"));
        await forgetBeside(beside, state);
        expect(warnings).toEqual([]);
        expect(await records()).toEqual([]);
      });

      it("tells until when a bucket with object lock keeps what was removed", async () => {
        const Bucket = await lab.makeBucket("locked", { ObjectLockEnabledForBucket: true });
        await lab.client.send(
          new PutObjectLockConfigurationCommand({
            Bucket,
            ObjectLockConfiguration: {
              ObjectLockEnabled: "Enabled",
              Rule: { DefaultRetention: { Mode: "GOVERNANCE", Days: 3 } },
            },
          }),
        );
        const address = lab.address("here", Bucket);
        // Ceph takes no notice of conditions there, so each lease takes two seconds.
        await using chain = await MemoryChain.start(MiB, address);
        for (const _ of [1, 2, 3]) await chain.take({ full: true });
        const ran = await prune(address);
        expect(ran).toMatchObject({ code: 0 });
        const day = new Date(Date.now() + 3 * 86_400_000).toISOString().slice(0, 10);
        expect(ran.stdout + ran.stderr).toContain(`can't be deleted before ${day}`);
        expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });

        // As after a break-in: what was hidden comes back.
        const { DeleteMarkers = [] } = await lab.client.send(
          new ListObjectVersionsCommand({ Bucket, Prefix: "here/" }),
        );
        for (const { Key, VersionId, IsLatest } of DeleteMarkers) {
          if (IsLatest) await lab.client.send(new DeleteObjectCommand({ Bucket, Key, VersionId }));
        }
        const restored = await nbdpull("verify", address, "--json");
        expect(restored).toMatchObject({ code: 0 });
        expect((restored.json() as { points: unknown[] }).points).toHaveLength(3);
      });
    });

    describe("a line to the store that breaks", () => {
      let image: string;
      beforeAll(async () => {
        image = join(lab.folder, "image.raw");
        await writeFile(image, noise(30 * MiB, 3));
      });

      const importInto = (address: string): string[] => {
        return ["import", "--disk", `vda=${image}`, "--to", address, "--domain", NAME, "--create"];
      };
      const importTo = async (address: string) => await nbdpull(...importInto(address));

      it("delays an import whose requests fail, and whose answers are lost", async () => {
        const address = lab.address("broken");
        let asked = 0;
        const lost = new Set<string>();
        lab.line.fault = ({ method, url }) => {
          const isCompletion = method === "POST" && url.includes("uploadId=");
          const isManifest = method === "PUT" && url.includes("point.json");
          for (const [is, what] of [
            [isCompletion, "completion"],
            [isManifest, "manifest"],
          ] as const) {
            if (!is || lost.has(what)) continue;
            lost.add(what);
            return "lose answer";
          }
          if (method !== "PUT" || !url.includes("vda")) return undefined;
          asked += 1;
          // What is repeated mostly succeeds: pauses grow with each failure.
          if (asked % 2 === 0) return undefined;
          const faults = [
            { answer: 500, code: "InternalError" },
            "hang up",
            { answer: 503, code: "SlowDown" },
          ] satisfies StoreFault[];
          return faults[((asked - 1) / 2) % faults.length];
        };
        expect(await importTo(address)).toMatchObject({ code: 0 });
        expect([...lost].sort()).toEqual(["completion", "manifest"]);
        lab.line.fault = () => undefined;
        expect(await lab.left("broken")).toEqual([]);
        expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
        const path = await lab.download("broken");
        const [id = ""] = await readdir(join(path, NAME));
        await execa("qemu-img", ["compare", "-F", "raw", join(path, NAME, id, "vda.qcow2"), image]);
      });

      it("makes no point of what another process has put there meanwhile, and leaves that alone", async () => {
        const address = lab.address("overtaken");
        let theirs: Promise<unknown> | undefined;
        let Key = "";
        lab.line.fault = ({ method, url }) => {
          if (method !== "PUT" || theirs || !url.includes("point.json")) return undefined;
          Key = decodeURIComponent(new URL(url, lab.line.endpoint).pathname).replace(`/${lab.bucket}/`, "");
          theirs = lab.put(Key, "{}");
          return { answer: 503, code: "SlowDown" };
        };
        const ran = await importTo(address);
        expect(ran).toMatchObject({ code: 1 });
        expect(ran.stderr).toContain("lease");
        expect(await lab.keys(Key)).toEqual([Key]);
      });

      it("removes what a note says was begun, and nothing whose name is no point's", async () => {
        const repository = await Repository.openOrCreate(lab.address("noted"));
        const point = "20260101T000000.000Z";
        for (const name of [point, "notes", ".nbdpull"]) {
          for (const Key of [`.${name}.partial`, `${name}/file`]) {
            await lab.put(`noted/${NAME}/${Key}`, "x");
          }
        }
        await repository.writingInStore(NAME, async () => undefined);
        const left = (await lab.keys(`noted/${NAME}/`)).map((key) => key.slice(`noted/${NAME}/`.length));
        expect(left.sort()).toEqual(["..nbdpull.partial", ".nbdpull/file", ".notes.partial", "notes/file"]);
      });

      it("commits nothing where another process has cleared its point away, as after a suspension", async () => {
        const address = lab.address("suspended");
        let isClearing = false;
        let isCleared = false;
        const clear = async (id: string): Promise<void> => {
          const Key = `suspended/${NAME}/.${id}.partial`;
          await lab.put(Key, "cleared");
          for (const each of await lab.keys(`suspended/${NAME}/${id}/`)) {
            await lab.remove(each);
          }
          isCleared = true;
        };
        lab.line.fault = ({ method, url }) => {
          const [, id] = /([^/]*)\/point\.json/.exec(url) ?? [];
          if (method !== "PUT" || isCleared || id === undefined) return undefined;
          if (!isClearing) void clear(id);
          isClearing = true;
          return { answer: 503, code: "SlowDown" };
        };
        // A process of its own: the lease that it has lost is not waited for when it has ended.
        const ran = await finished(startNbdpull(importInto(address)));
        expect(isCleared).toBe(true);
        expect(ran).toMatchObject({ code: 1 });
        expect(ran.stderr).toContain("lease");
        expect(await importTo(address)).toMatchObject({ code: 0 });
        expect(await lab.left("suspended")).toEqual([]);
        const made = (await lab.keys(`suspended/${NAME}/`)).filter((key) => key.endsWith("/point.json"));
        expect(made).toHaveLength(1);
      });

      it.each([
        ["expired credentials", { answer: 400, code: "ExpiredToken" }, 4],
        ["a policy that lacks a permission", { answer: 403, code: "AccessDenied" }, 4],
      ] as const)("ends an import by %s, and leaves no point", async (what, fault, code) => {
        const prefix = `ended-${code}-${fault.code}`;
        lab.line.fault = ({ method, url }) =>
          method === "PUT" && url.includes("partNumber=2") ? fault : undefined;
        const ran = await importTo(lab.address(prefix));
        expect(ran, what).toMatchObject({ code });
        expect(await lab.left(prefix)).toEqual([]);
        expect(await lab.keys(`${prefix}/${NAME}`)).toEqual([]);
      });

      it("refuses a raw image before anything is written", async () => {
        const address = lab.address("raw");
        const args = ["--disk", `vda=${image}`, "--to", address, "--create", "--format", "raw", "--json"];
        const ran = await nbdpull("import", "--domain", NAME, ...args);
        expect(ran).toMatchObject({ code: 2 });
        expect(ran.stdout + ran.stderr).toContain("E_STORE_FORMAT");
        expect(await lab.keys("raw/")).toEqual([]);
      });
    });
  },
);
