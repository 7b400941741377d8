/** Points removed from an object store, and what is kept there: Ceph, with qemu-img as the judge of what stays. */
import {
  DeleteObjectCommand,
  ListObjectVersionsCommand,
  PutObjectLockConfigurationCommand,
} from "@aws-sdk/client-s3";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { forgetBeside, noteBeside } from "../../src/backup/live/beside-point.js";
import type { PruneResult } from "../../src/backup/prune/prune-options.js";
import { forgetLive, noteLive } from "../../src/backup/repository/live-note.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { chainOfFour } from "../support/chain-of-four.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";
import { noise } from "../support/noise.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;

describeWith(
  ["radosgw", "ceph-mon", "ceph-osd", "qemu-img"],
  "points in an object store that are removed",
  () => {
    let lab: StoreLab;
    withStoreLab((started) => {
      lab = started;
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
        await chain.expectStock(await lab.download("pruned"));
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

    describe("nbdpull forget", () => {
      let chain: MemoryChain;
      beforeAll(async () => {
        chain = await chainOfFour();
      });
      afterAll(async () => {
        await chain?.[Symbol.asyncDispose]();
      });

      const ids = (): string[] => chain.points.map(({ id }) => id);

      it("forgets a domain, the newest point first, and goes on with what a killed run has left", async () => {
        const address = await lab.upload(chain.repository.path, "forgotten");
        const copied = `forgotten/${NAME}/20200101T000000.000Z/vda.qcow2`;
        await lab.put(copied, "being copied there");
        await lab.put(`forgotten/${NAME}/${ids()[0]}/point.json`, "damaged");
        const there = await lab.keys("forgotten/");
        const forget = (...more: string[]) => nbdpull("forget", address, NAME, "--json", ...more);
        expect(await forget()).toMatchObject({ code: 2 });
        const left = [copied.split("/")[2]];
        const tried = await forget("--dry-run");
        expect([tried.code, tried.json()]).toMatchObject([0, { domains: [{ points: ids(), left }] }]);
        expect(await lab.keys("forgotten/")).toEqual(there);
        const [newest = ""] = ids().slice(-1);
        let deleted = 0;
        lab.line.fault = ({ method, url }) => {
          if (method !== "DELETE" || !url.includes(`${newest}/`) || url.includes("point.json"))
            return undefined;
          deleted += 1;
          return "never answer";
        };
        const killed = startNbdpull(["forget", address, NAME, "--force"]);
        await expect.poll(() => deleted).toBeGreaterThan(0);
        killed.kill("SIGKILL");
        await killed.ended;
        lab.line.fault = () => undefined;
        expect((await lab.keys("forgotten/")).filter((key) => key.endsWith(".partial"))).toHaveLength(1);
        const ran = await forget("--force");
        expect([ran.code, ran.json()]).toMatchObject([
          0,
          { domains: [{ points: ids().slice(0, -1), left }] },
        ]);
        expect(await lab.keys("forgotten/")).toEqual([copied, "forgotten/nbdpull.json"]);
        expect(await lab.keys(`forgotten/${NAME}/${newest}`)).toEqual([]);
        // No point is called so, and the next one clears away no such thing.
        const folder = `forgotten/${NAME}`;
        await lab.put(`${folder}/.copied.partial`, "another program's");
        expect(await forget("--force")).toMatchObject({ code: 4 });
        await lab.put(`${folder}/.${newest}.partial`, "a note");
        expect(await nbdpull("forget", address, NAME, "--dry-run")).toMatchObject({
          code: 0,
          stdout: `${NAME}: would remove what a run has begun there`,
        });
      });
    });
  },
);
