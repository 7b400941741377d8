/** Points written to an object store: Ceph, with qemu-img as the judge of what lies there. */
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CopyResult } from "../../src/backup/copy/copy-points.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { StoreFault } from "../support/breaking-store.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { noise } from "../support/noise.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;

describeWith(
  ["radosgw", "ceph-mon", "ceph-osd", "qemu-img"],
  "a repository in an object store that is written",
  () => {
    let lab: StoreLab;
    withStoreLab((started) => {
      lab = started;
    });

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
        await chain.expectStock(path);
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
        await chain.expectStock(path);
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

      it("have a time mended that was of a wrong clock", async () => {
        const address = await lab.upload(chain.repository.path, "clock");
        const key = `clock/${NAME}/${chain.points[0]?.id}/point.json`;
        const manifest = JSON.parse((await lab.read(key)).toString()) as object;
        await lab.put(
          key,
          JSON.stringify({ ...manifest, createdAt: "1999-01-01T00:00:00.000Z", other: "kept" }),
        );
        const reading = await (await Repository.open(address)).beginReading(NAME);
        const ran = await nbdpull("points", address, "--fix-clock", "--json");
        expect(ran).toMatchObject({ code: 0 });
        expect(ran.json()).toMatchObject({
          mended: [{ id: chain.points[0]?.id, was: "1999-01-01T00:00:00.000Z" }],
        });
        const mended = (await nbdpull("points", address, "--json")).json() as { createdAt: string }[];
        expect(Date.now() - Date.parse(mended[0]?.createdAt ?? "")).toBeLessThan(3_600_000);
        const now = (await lab.read(key)).toString();
        expect(now).toContain('"other": "kept"');
        // Nobody's bytes have changed, until an image is replaced.
        await reading.assertUnpruned();
        await lab.put(key, JSON.stringify({ ...(JSON.parse(now) as object), revision: "of a merge" }));
        await expect(reading.assertUnpruned()).rejects.toMatchObject({ code: "E_PRUNED_MEANWHILE" });
        await reading.release();
        expect(await lab.keys("clock/").then((all) => all.filter((each) => each.includes("/.")))).toEqual([]);
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
