/** Points in an object store, read like those of a folder: Ceph, with qemu-img as the judge. */
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { DamageError } from "../../src/backup/base/errors.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { NbdClient } from "../../src/nbd/index.js";
import { chainOfFour } from "../support/chain-of-four.js";
import { DocumentRunner } from "../support/document-runner.js";
import { describeWithFuse } from "../support/fuse.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { restoreDisk } from "../support/restore-disk.js";
import { startServing } from "../support/serving.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;

describeWith(["radosgw", "ceph-mon", "ceph-osd", "qemu-img"], "a repository in an object store", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });
  let chain: MemoryChain;

  beforeAll(async () => {
    chain = await chainOfFour();
  });
  afterAll(async () => {
    await chain?.[Symbol.asyncDispose]();
  });

  const stored = (prefix: string): Promise<string> => lab.upload(chain.repository.path, prefix);
  const ids = (): string[] => chain.points.map(({ id }) => id);
  const newest = (): string => ids().at(-1) ?? "";
  const isThere = (path: string): Promise<boolean> =>
    stat(path).then(
      () => true,
      () => false,
    );

  it("has what docs/stores.md says", async () => {
    await stored("site-a");
    const names = (): [RegExp, string][] => [
      [/https:\/\/rgw\.example\.org/g, lab.line.endpoint],
      [/s3:\/\/backups\b/g, `s3://${lab.bucket}`],
    ];
    await using runner = await DocumentRunner.start({ root: join(lab.folder, "page"), names });
    await runner.run("docs/stores.md");
  });

  it("ends at once by a signal though the store says nothing", async () => {
    const address = await stored("silent");
    let silent = 0;
    lab.line.fault = ({ url }) => (url.includes("vda.qcow2") && ++silent > 2 ? "never answer" : undefined);
    const verifying = startNbdpull(["verify", address]);
    await expect.poll(() => silent).toBeGreaterThan(2);
    const began = performance.now();
    verifying.kill("SIGTERM");
    expect(await verifying.ended).toMatchObject({ code: 143 });
    // An answer is waited for twice as long.
    expect(performance.now() - began).toBeLessThan(30_000);
  });

  it("has no damage where the store refuses to show a manifest", async () => {
    const address = await stored("forbidden");
    lab.line.fault = ({ url }) =>
      url.includes("point.json") ? { answer: 403, code: "AccessDenied" } : undefined;
    const ran = await nbdpull("points", address, "--json");
    expect(ran).toMatchObject({ code: 4 });
    expect(ran.stdout + ran.stderr).toContain("E_S3_ACCESS");
  });

  it("has points that are listed, verified and restored as from a folder", async () => {
    const address = await stored("whole");
    const listed = await nbdpull("points", address, "--json");
    const inFolder = await nbdpull("points", chain.repository.path, "--json");
    const rows = (ran: typeof listed) =>
      (ran.json() as { folder: string }[]).map((row) => ({ ...row, path: "" }));
    expect(listed.code).toBe(0);
    expect(rows(listed).length).toBe(4);
    expect(JSON.stringify(rows(listed)).replaceAll(address, "R")).toBe(
      JSON.stringify(rows(inFolder)).replaceAll(chain.repository.path, "R"),
    );
    const verified = await nbdpull("verify", address, "--json");
    expect(verified).toMatchObject({ code: 0 });
    expect(verified.json()).toMatchObject({ damaged: false });
    const repository = await Repository.open(address);
    const points = await repository.points(MemoryChain.domain, () => undefined);
    for (const [index, point] of points.entries()) {
      const format = index % 2 === 0 ? "raw" : "qcow2";
      const targetPath = join(lab.folder, `restored.${format}`);
      if (index === 0) {
        const args = ["--at", point.id, "--disk", "vda", "--to", targetPath];
        expect(await nbdpull("restore", address, ...args)).toMatchObject({ code: 0 });
      } else {
        const to = { diskName: "vda", targetPath, format, force: true, sync: false } as const;
        await restoreDisk({ repository, point, ...to });
      }
      await execa("qemu-img", [
        "compare",
        "-f",
        format,
        "-F",
        "raw",
        targetPath,
        await chain.rawFile(point.id),
      ]);
    }
  });

  it("is a repository for stock QEMU when its objects are copied into a folder", async () => {
    await stored("copied");
    const to = await lab.download("copied");
    // The last point is raw, which has no backing file of its own.
    const id = ids().at(-2) ?? "";
    await execa("qemu-img", [
      ...["compare", "-f", "qcow2", "-F", "raw"],
      ...[join(to, MemoryChain.domain, id, "vda.qcow2"), await chain.rawFile(id)],
    ]);
    expect(await nbdpull("verify", to)).toMatchObject({ code: 0 });
  });

  it("is served from", async () => {
    const address = await stored("served");
    const cache = ["--cache", join(lab.folder, "cache")];
    await using serving = await startServing(address, "--socket", join(lab.folder, "serve.sock"), ...cache);
    const uri = serving.uris[0] ?? "";
    expect(await readdir(join(lab.folder, "cache"))).toEqual([]);
    // The store is away for reads: each fails, and one line says so. Then it is back.
    lab.line.fault = ({ method, url }) =>
      method === "GET" && url.includes("vda") ? { answer: 403, code: "AccessDenied" } : undefined;
    await using reader = await NbdClient.connect(uri);
    const bytes = Buffer.alloc(64 * 1024);
    const failed = await Promise.allSettled([0, 6 * MiB].map((at) => reader.read(at, bytes)));
    expect(failed.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    const told = (): unknown => serving.stderr().match(/cannot be read at guest offset/g);
    await expect.poll(told).toHaveLength(1);
    lab.line.fault = () => undefined;
    await reader.read(0, bytes);
    const compare = ["compare", "-f", "raw", "-F", "raw", uri, await chain.rawFile(newest())];
    await execa("qemu-img", compare);
    await execa("qemu-img", compare);
  });

  describeWithFuse("by FUSE", () => {
    it("is shown as files", async () => {
      const address = await stored("mounted");
      const at = join(lab.folder, "mounted-here");
      const mount = startNbdpull(["mount", address, MemoryChain.domain, at]);
      const file = join(at, "vda");
      // Before the disk covers it, an empty file is there.
      const mounts = (): Promise<string> => readFile("/proc/self/mounts", "utf8");
      await expect.poll(mounts, { interval: 50 }).toContain(` ${file} `);
      const raw = ["-f", "raw", "-F", "raw"];
      await execa("qemu-img", ["compare", ...raw, file, await chain.rawFile(newest())]);
      expect(await nbdpull("unmount", at)).toMatchObject({ code: 0 });
      expect(await mount.ended).toMatchObject({ code: 0 });
    });
  });

  it("gives the right bytes though the store fails, is slow to answer and hangs up", async () => {
    const address = await stored("failing");
    let asked = 0;
    lab.line.fault = ({ url }) => {
      asked += 1;
      if (!url.includes("vda") || asked % 3 !== 0) return undefined;
      return (["cut answer", "hang up", { answer: 503, code: "SlowDown" }] as const)[asked % 2];
    };
    const to = join(lab.folder, "failing.raw");
    const args = ["restore", address, "--disk", "vda", "--to", to];
    expect(await nbdpull(...args)).toMatchObject({ code: 0 });
    await execa("qemu-img", ["compare", "-f", "raw", "-F", "raw", to, await chain.rawFile(newest())]);
  });

  it("has no point where a manifest is missing, as one that is being made", async () => {
    const address = await stored("unfinished");
    await lab.remove(`unfinished/${MemoryChain.domain}/${newest()}/point.json`);
    const listed = await nbdpull("points", address, "--json");
    expect((listed.json() as { id: string }[]).map(({ id }) => id)).toEqual(ids().slice(0, -1));
    await lab.remove(`unfinished/${MemoryChain.domain}/${ids()[1]}/point.json`);
    const to = join(lab.folder, "unfinished.raw");
    const restored = await nbdpull("restore", address, "--disk", "vda", "--to", to);
    expect(restored).toMatchObject({ code: 3 });
    expect(restored.stderr).toContain(ids()[1]);
    expect(await isThere(to)).toBe(false);
  });

  /** Restores the newest point, as the command does. @returns what is said of the damage */
  async function damageOf(address: string, targetPath: string): Promise<string> {
    const repository = await Repository.open(address);
    const point = (await repository.points(MemoryChain.domain, () => undefined)).at(-1);
    if (!point) throw new Error("there is no point");
    const to = { diskName: "vda", targetPath, format: "raw", force: false, sync: false } as const;
    const error: unknown = await restoreDisk({ repository, point, ...to }).catch((cause: unknown) => cause);
    if (!(error instanceof DamageError)) throw new Error("no damage was found", { cause: error });
    return `${error.message} ${JSON.stringify(error.details)}`;
  }

  it("tells what is damaged by its key, and restores nothing of it", async () => {
    const address = await stored("damaged");
    const base = `damaged/${MemoryChain.domain}/${ids()[0]}`;
    const image = await lab.read(`${base}/vda.qcow2`);
    const digests = await lab.read(`${base}/vda.digests`);
    const manifest = await lab.read(`${base}/point.json`);
    const to = join(lab.folder, "damaged.raw");
    const flipped = Buffer.from(image);
    flipped.writeUInt8(flipped.readUInt8(3 * MiB) ^ 1, 3 * MiB);
    const forged = manifest.toString().replace('"file": "vda.qcow2"', '"file": "../../other/vda.qcow2"');
    expect(forged).not.toBe(manifest.toString());
    const cases: [key: string, content: Buffer | undefined, original: Buffer][] = [
      ["vda.qcow2", image.subarray(0, image.length / 2), image],
      ["vda.qcow2", undefined, image],
      ["vda.qcow2", flipped, image],
      ["vda.digests", digests.subarray(0, 100), digests],
      ["vda.digests", undefined, digests],
      ["point.json", Buffer.from(forged), manifest],
      ["point.json", Buffer.alloc(5 * MiB), manifest],
    ];
    for (const [name, content, original] of cases) {
      const key = `${base}/${name}`;
      await (content === undefined ? lab.remove(key) : lab.put(key, content));
      const said = await damageOf(address, to);
      expect(said, `${name} of ${content?.length} bytes`).toContain(ids()[0]);
      if (content !== flipped) expect(said).toContain(key);
      expect(await isThere(to)).toBe(false);
      if (name === "vda.qcow2") expect(await nbdpull("verify", address)).toMatchObject({ code: 3 });
      await lab.put(key, original);
    }
    // What a verify has found is known until another one finds it gone, as in a folder.
    const record = `${base}/.damage.json`;
    expect(await lab.keys(record)).toEqual([record]);
    const restorable = async (): Promise<boolean[]> =>
      ((await nbdpull("points", address, "--json")).json() as { restorable: boolean }[]).map(
        (each) => each.restorable,
      );
    expect(await restorable()).not.toContain(true);
    expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
    expect(await lab.keys(record)).toEqual([]);
    expect(await restorable()).not.toContain(false);
    // Whoever may only read is told.
    await lab.put(`${base}/vda.qcow2`, flipped);
    lab.line.fault = ({ method }) => (method === "PUT" ? { answer: 403, code: "AccessDenied" } : undefined);
    const reading = await nbdpull("verify", address);
    expect(reading).toMatchObject({ code: 3, stderr: expect.stringContaining("can't be noted beside it") });
    expect(reading.stderr).not.toContain("copy it to a folder");
  });

  it("finds out that an object was replaced after it was listed", async () => {
    const address = await stored("replaced");
    const repository = await Repository.open(address);
    const point = (await repository.points(MemoryChain.domain, () => undefined)).at(-1);
    if (!point) throw new Error("there is no point");
    const key = `replaced/${MemoryChain.domain}/${ids()[0]}/vda.qcow2`;
    await lab.put(key, Buffer.concat([await lab.read(key), Buffer.alloc(MiB)]));
    const targetPath = join(lab.folder, "replaced.raw");
    const restoring = restoreDisk({
      ...{ repository, point, diskName: "vda", targetPath, format: "raw", force: false, sync: false },
    });
    await expect(restoring).rejects.toMatchObject({
      name: "DamageError",
      message: expect.stringContaining(key),
    });
    expect(await isThere(targetPath)).toBe(false);
  });

  it("takes no keys for files that no file could have", async () => {
    const address = await stored("odd");
    for (const key of ["odd/", "odd/guest/", "odd/guest//x", "odd/../point.json", "odd/guest/../../x"]) {
      await lab.put(key, "x");
    }
    expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
  });

  it("is looked at by doctor, also where only the settings name it", async () => {
    const address = await stored("doctored");
    await lab.remove(`doctored/${MemoryChain.domain}/${ids()[1]}/vda.qcow2`);
    const run = startNbdpull(["doctor", "--json"], { env: { NBDPULL_REPOSITORY: address } });
    const findings = (await finished(run)).json() as Record<string, string>[];
    const of = (name: string): object[] => findings.filter(({ check }) => check?.split(" ")[0] === name);
    expect(of("repository")).toMatchObject([{ status: "pass", cause: `${address} lies in an object store` }]);
    const mend = `nbdpull repair ${address} ${MemoryChain.domain}`;
    // What is based on the point can't be restored either.
    expect(of("points")).toMatchObject([1, 2, 3].map(() => ({ status: "warn", mend })));
  });

  it.each([
    ["stats", (at: string) => ["stats", at]],
    ["diff", (at: string) => ["diff", at, MemoryChain.domain, ids()[0] ?? "", newest()]],
    ["report", (at: string) => ["report", at]],
  ])("%s tells of it what it tells of a folder", async (_, words) => {
    const address = await stored("told");
    const { path } = chain.repository;
    const [there, here] = [
      await nbdpull(...words(address), "--json"),
      await nbdpull(...words(path), "--json"),
    ];
    expect(there, there.stderr).toMatchObject({ code: here.code });
    const plain = ({ stdout }: typeof here): string =>
      stdout.replaceAll(/"(ageSeconds|createdAt|stranger)": [^\n]*/g, "").replaceAll(address, path);
    expect(plain(there)).toBe(plain(here));
  });
});
