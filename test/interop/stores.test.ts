/** Repositories in an object store: Ceph, with qemu-img and nbdcopy as judges. */
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CreateMultipartUploadCommand, PutBucketVersioningCommand } from "@aws-sdk/client-s3";
import { execa } from "execa";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { OTHER } from "../../bench/ceph.js";
import { DamageError } from "../../src/backup/base/errors.js";
import {
  CheckpointRecord,
  type RecordedRepository,
  recordedRepositories,
  whereItWas,
} from "../../src/backup/guest/checkpoint-record.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { NbdClient } from "../../src/nbd/index.js";
import { DocumentRunner } from "../support/document-runner.js";
import { describeWithFuse } from "../support/fuse.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { restoreDisk } from "../support/restore-disk.js";
import { startServing } from "../support/serving.js";
import { startAll } from "../support/start-all.js";
import { StoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;

describeWith(["radosgw", "ceph-mon", "ceph-osd", "qemu-img"], "a repository in an object store", () => {
  let lab: StoreLab;
  let chain: MemoryChain;

  beforeAll(async () => {
    [lab, chain] = await startAll(StoreLab.start(), chainOfFour());
  });
  afterAll(async () => {
    await lab?.[Symbol.asyncDispose]();
    await chain?.[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    await lab.begin();
  });

  /** Puts the points of the chain below a prefix, as another program would copy them there. */
  async function stored(prefix: string): Promise<string> {
    const path = chain.repository.path;
    for (const name of await readdir(path, { recursive: true })) {
      if (!(await stat(join(path, name))).isFile()) continue;
      await lab.put(`${prefix}/${name}`, await readFile(join(path, name)));
    }
    return lab.address(prefix);
  }

  /** The bytes of a point, as a raw file for qemu-img. */
  async function expected(id: string): Promise<string> {
    const path = join(lab.folder, `${id}.expected`);
    await writeFile(path, await chain.contentOf(id));
    return path;
  }

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

  it("is made, and made only once and only where nothing is", async () => {
    const address = lab.address("made/here");
    const made = await nbdpull("init", address, "--json");
    expect(made).toMatchObject({ code: 0 });
    expect(made.json()).toMatchObject({ path: address, conditionalCreate: true, conditionalReplace: true });
    expect(await lab.keys("made/")).toEqual(["made/here/nbdpull.json"]);
    const marker = JSON.parse((await lab.read("made/here/nbdpull.json")).toString()) as { id: string };
    expect(made.json()).toMatchObject({ id: marker.id });
    expect(marker).toMatchObject({
      format: "nbdpull-repository",
      version: 1,
      store: { conditionalCreate: true },
    });
    expect(await nbdpull("points", address)).toMatchObject({ code: 0, stdout: "no restore points yet" });
    const again = await nbdpull("init", address);
    expect(again).toMatchObject({ code: 4 });
    expect(again.stderr).toContain(marker.id);
    await lab.put("full/of/other/things", "x");
    expect(await nbdpull("init", lab.address("full"))).toMatchObject({ code: 2 });
    expect(await lab.keys("full/")).toEqual(["full/of/other/things"]);
  });

  it("is known to the record of its checkpoints by its endpoint too: elsewhere it is a copy", async () => {
    const address = lab.address("recorded");
    const stateFolder = join(lab.folder, "state");
    const recordOf = async (repository: Repository): Promise<CheckpointRecord> =>
      await CheckpointRecord.open({
        ...{ stateFolder, repository, domainUuid: "f00dcafe-0000-4000-8000-000000000000", moved: false },
        found: async () => [],
      });
    const repository = await Repository.openOrCreate(address);
    await recordOf(repository);
    await recordOf(await Repository.open(`${address}?endpoint=${lab.line.endpoint}/&region=eu`));
    const copy = await Repository.open(`${address}?endpoint=${lab.store.endpoint}`);
    await expect(recordOf(copy)).rejects.toMatchObject({
      code: "E_REPOSITORY_MOVED",
      message: expect.stringContaining(lab.line.endpoint),
    });
    // Whoever retires a repository may have another environment than its backups.
    const [recorded] = await recordedRepositories(stateFolder);
    process.env["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1";
    try {
      expect((await whereItWas(recorded as RecordedRepository))?.id).toBe(repository.id);
    } finally {
      process.env["AWS_ENDPOINT_URL"] = lab.line.endpoint;
    }
  });

  it("is made once though two make it, and what a killed init has tried is removed", async () => {
    const address = lab.address("twice");
    const theirs = "2b1f9c0e-6a53-4c39-9a3e-5d1f6f0a7c11";
    const marker = JSON.stringify({ format: "nbdpull-repository", version: 1, id: theirs });
    let theirPut: Promise<void> | undefined;
    lab.line.fault = ({ method, url }) => {
      if (theirPut || method !== "PUT" || !url.includes("nbdpull.json")) return undefined;
      theirPut = lab.put("twice/nbdpull.json", marker);
      return "hang up";
    };
    const lost = await nbdpull("init", address);
    expect(lost).toMatchObject({ code: 4 });
    expect(lost.stderr).toContain(theirs);
    expect((await lab.read("twice/nbdpull.json")).toString()).toBe(marker);

    const Key = "again/.probe-killed/parts";
    await lab.put("again/.probe-killed/small", "first");
    await lab.client.send(new CreateMultipartUploadCommand({ Bucket: lab.bucket, Key }));
    expect(await nbdpull("init", lab.address("again"))).toMatchObject({ code: 0 });
    expect(await lab.keys("again/")).toEqual(["again/nbdpull.json"]);
    expect(await lab.left("again")).toEqual([]);
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

  it("warns where the store takes no notice of conditions", async () => {
    lab.line.fault = () => "ignore conditions";
    const made = await nbdpull("init", lab.address("unconditional"));
    expect(made).toMatchObject({ code: 0 });
    expect(made.stderr).toContain("only one host");
    const doctor = startNbdpull(["doctor", "--to", lab.address("unconditional"), "--json"]);
    expect((await finished(doctor)).json()).toContainEqual(
      expect.objectContaining({ status: "warn", cause: expect.stringContaining("only one host") }),
    );
  });

  it.each([
    ["copy", async (to: string) => ["copy", chain.repository.path, to, "--create"]],
    [
      "import",
      async (to: string) => {
        const image = join(lab.folder, "vda.raw");
        await writeFile(image, Buffer.alloc(MiB, 7));
        return ["import", image, "--domain", "guest", "--disk", "vda", "--to", to, "--create"];
      },
    ],
  ])("that %s makes is told of once where the store takes no notice of conditions", async (_, words) => {
    lab.line.fault = () => "ignore conditions";
    const ran = await nbdpull(...(await words(lab.address("made"))));
    expect(ran, ran.stderr).toMatchObject({ code: 0 });
    expect(ran.stderr.match(/only one host/g)).toHaveLength(1);
  });

  it.each(["copied elsewhere", "versions were switched on"])(
    "is told of by whoever writes there since %s",
    async (change) => {
      const address = await stored("changed");
      const marker = JSON.parse((await lab.read("changed/nbdpull.json")).toString()) as object;
      const store = { conditionalCreate: true, conditionalReplace: true };
      await lab.put("changed/nbdpull.json", JSON.stringify({ ...marker, store }));
      if (change === "copied elsewhere") lab.line.fault = () => "ignore conditions";
      else {
        const VersioningConfiguration = { Status: "Enabled" } as const;
        await lab.client.send(
          new PutBucketVersioningCommand({ Bucket: lab.bucket, VersioningConfiguration }),
        );
      }
      const ran = await nbdpull("prune", address, "--keep-last", "1");
      expect(ran, ran.stderr).toMatchObject({ code: 0 });
      expect(ran.stderr.split("takes none now"), ran.stderr + ran.stdout).toHaveLength(2);
      expect(ran.stdout).toContain("can't replace on condition");
    },
  );

  it("is told of once to whoever opens it for one domain after the other", async () => {
    const address = await stored("often");
    lab.line.fault = () => "ignore conditions";
    const { signal } = new AbortController();
    const told: string[] = [];
    for (const domain of ["one", "two"]) {
      const onWarning = (message: string): void => void told.push(message);
      const repository = await Repository.open(address, { signal, onWarning });
      await repository.writingInStore(domain, async () => undefined);
    }
    expect(told).toEqual([expect.stringContaining("only one host")]);
  });

  it("that another program has copied there is tried with little, which leaves nothing", async () => {
    const address = await stored("foreign");
    lab.line.fault = () => "ignore conditions";
    lab.line.seen.length = 0;
    const ran = await nbdpull("prune", address, "--keep-last", "4");
    expect(ran, ran.stderr).toMatchObject({ code: 0 });
    expect(ran.stderr.match(/only one host/g)).toHaveLength(1);
    expect(lab.line.seen.filter((each) => each.startsWith("POST"))).toEqual([]);
    expect(await lab.keys("foreign/.probe-")).toEqual([]);
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
      await execa("qemu-img", ["compare", "-f", format, "-F", "raw", targetPath, await expected(point.id)]);
    }
  });

  it("is a repository for stock QEMU when its objects are copied into a folder", async () => {
    await stored("copied");
    const to = await lab.download("copied");
    // The last point is raw, which has no backing file of its own.
    const id = ids().at(-2) ?? "";
    await execa("qemu-img", [
      ...["compare", "-f", "qcow2", "-F", "raw"],
      ...[join(to, MemoryChain.domain, id, "vda.qcow2"), await expected(id)],
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
    const compare = ["compare", "-f", "raw", "-F", "raw", uri, await expected(newest())];
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
      await execa("qemu-img", ["compare", ...raw, file, await expected(newest())]);
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
    await execa("qemu-img", ["compare", "-f", "raw", "-F", "raw", to, await expected(newest())]);
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

  it("forgets a domain, the newest point first, and goes on with what a killed run has left", async () => {
    const address = await stored("forgotten");
    const copied = `forgotten/${MemoryChain.domain}/20200101T000000.000Z/vda.qcow2`;
    await lab.put(copied, "being copied there");
    await lab.put(`forgotten/${MemoryChain.domain}/${ids()[0]}/point.json`, "damaged");
    const there = await lab.keys("forgotten/");
    const forget = (...more: string[]) => nbdpull("forget", address, MemoryChain.domain, "--json", ...more);
    expect(await forget()).toMatchObject({ code: 2 });
    const left = [copied.split("/")[2]];
    const tried = await forget("--dry-run");
    expect([tried.code, tried.json()]).toMatchObject([0, { domains: [{ points: ids(), left }] }]);
    expect(await lab.keys("forgotten/")).toEqual(there);
    const [newest = ""] = ids().slice(-1);
    let deleted = 0;
    lab.line.fault = ({ method, url }) => {
      if (method !== "DELETE" || !url.includes(`${newest}/`) || url.includes("point.json")) return undefined;
      deleted += 1;
      return "never answer";
    };
    const killed = startNbdpull(["forget", address, MemoryChain.domain, "--force"]);
    await expect.poll(() => deleted).toBeGreaterThan(0);
    killed.kill("SIGKILL");
    await killed.ended;
    lab.line.fault = () => undefined;
    expect((await lab.keys("forgotten/")).filter((key) => key.endsWith(".partial"))).toHaveLength(1);
    const ran = await forget("--force");
    expect([ran.code, ran.json()]).toMatchObject([0, { domains: [{ points: ids().slice(0, -1), left }] }]);
    expect(await lab.keys("forgotten/")).toEqual([copied, "forgotten/nbdpull.json"]);
    expect(await lab.keys(`forgotten/${MemoryChain.domain}/${newest}`)).toEqual([]);
    // No point is called so, and the next one clears away no such thing.
    const folder = `forgotten/${MemoryChain.domain}`;
    await lab.put(`${folder}/.copied.partial`, "another program's");
    expect(await forget("--force")).toMatchObject({ code: 4 });
    await lab.put(`${folder}/.${newest}.partial`, "a note");
    expect(await nbdpull("forget", address, MemoryChain.domain, "--dry-run")).toMatchObject({
      code: 0,
      stdout: `${MemoryChain.domain}: would remove what a run has begun there`,
    });
  });

  it("has a time mended that was of a wrong clock", async () => {
    const address = await stored("clock");
    const key = `clock/${MemoryChain.domain}/${ids()[0]}/point.json`;
    const manifest = JSON.parse((await lab.read(key)).toString()) as object;
    await lab.put(key, JSON.stringify({ ...manifest, createdAt: "1999-01-01T00:00:00.000Z", other: "kept" }));
    const reading = await (await Repository.open(address)).beginReading(MemoryChain.domain);
    const ran = await nbdpull("points", address, "--fix-clock", "--json");
    expect(ran).toMatchObject({ code: 0 });
    expect(ran.json()).toMatchObject({ mended: [{ id: ids()[0], was: "1999-01-01T00:00:00.000Z" }] });
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

  const COMMANDS = {
    points: async (address: string) => ["points", address],
    init: async (address: string) => ["init", address],
    "import --create": async (address: string) => {
      const image = join(lab.folder, "vda.raw");
      await writeFile(image, Buffer.alloc(MiB, 7));
      return ["import", image, "--domain", "guest", "--disk", "vda", "--to", address, "--create"];
    },
  };
  const region = { answer: 301, code: "PermanentRedirect" } as const;
  it.each(
    Object.entries(COMMANDS).flatMap(([name, words]) =>
      (
        [
          ["a bucket that is not there", "nobodys-bucket", {}, undefined, /E_S3_BUCKET.*there is no bucket/],
          ["another's bucket", "others", {}, undefined, /E_S3_ACCESS.*somebody else's bucket/],
          [
            "a wrong key",
            "",
            { AWS_SECRET_ACCESS_KEY: "wrong" },
            undefined,
            /E_S3_ACCESS.*secret key is not/,
          ],
          ["another region", "", {}, region, /E_S3_REGION.*\?region=/],
        ] as const
      ).map(([what, ...rest]) => [name, what, words, ...rest] as const),
    ),
  )("%s is refused with %s, in one line that says which", async (_, __, words, bucket, env, fault, said) => {
    if (bucket === "others") await lab.store.makeBucket("others", OTHER).catch(() => undefined);
    const address = lab.address("refused", bucket === "" ? lab.bucket : bucket);
    lab.line.fault = () => fault;
    Object.assign(process.env, env);
    const ran = await nbdpull(...(await words(address)));
    Object.assign(process.env, lab.environment);
    lab.line.fault = () => undefined;
    expect(ran).toMatchObject({ code: 4, stderr: expect.stringMatching(said) });
    expect(ran.stderr.split("\n").filter((line) => line.startsWith("nbdpull:"))).toHaveLength(1);
    expect(await lab.keys("")).toEqual([]);
  });

  it("is refused where there is none, in one line", async () => {
    const ran = await nbdpull("points", lab.address("nothing-here"));
    expect(ran).toMatchObject({ code: 4, stderr: expect.stringContaining("E_NO_REPOSITORY") });
    expect(ran.stderr.trim().split("\n")).toHaveLength(1);
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

/** A full point, an increment, a compressed one and a raw one. */
async function chainOfFour(): Promise<MemoryChain> {
  const chain = await MemoryChain.start(12 * MiB);
  const change = (seed: number, from: number, length: number): void => {
    const bytes = Buffer.alloc(length, `change ${seed} `);
    chain.disk.write(from, bytes);
  };
  change(1, 0, 5 * MiB);
  await chain.take();
  for (let i = 0; i < 20; i += 1) change(2, (i * 541 + 3) * 1024, 700);
  await chain.take();
  change(3, 6 * MiB, 2 * MiB);
  await chain.take({ compress: "deflate" });
  for (let i = 0; i < 20; i += 1) change(4, (i * 389 + 7) * 1024, 9000);
  await chain.take({ format: "raw" });
  return chain;
}
