/** Attach by a job's XML alone, with the built-in server in place of QEMU. It needs no libvirt. */
import { mkdir, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { listensOn, startServer } from "../nbd/servers.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { describeWith, SKIP_WITHOUT_ROOT } from "../support/tools.js";

const CLUSTER = 64 * 1024;
const SIZE = 64 * CLUSTER;
const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(40 * CLUSTER, 0x11));
  chain.disk.startBitmap("since");
  chain.disk.write(CLUSTER, Buffer.alloc(512, 0x22));
  chain.show();
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const repo = (): string => chain.repository.path;
const stored = (): Promise<string[]> => readdir(join(repo(), DOMAIN)).catch(() => []);

/** A job whose exports all show the chain's disk. */
interface Job {
  readonly disks?: readonly string[];
  /** The checkpoint that all disks are based on. */
  readonly incremental?: string;
  readonly socket?: string;
}

function attachArgs(xml: string, to: string): string[] {
  return ["attach", "--to", to, "--domain", DOMAIN, "--xml", xml, "--json"];
}

async function jobXml({ disks = ["vda"], incremental, socket = "nbd.sock" }: Job = {}): Promise<string> {
  const mode =
    incremental === undefined
      ? "backupmode='full'"
      : `backupmode='incremental' incremental='${incremental}' exportbitmap='since'`;
  const list = disks.map(
    (name) => `<disk name='${name}' backup='yes' type='file' ${mode} exportname='${name}'/>`,
  );
  const path = join(chain.folder, "job.xml");
  await writeFile(
    path,
    `<domainbackup mode='pull'><server transport='unix' socket='${join(chain.folder, socket)}'/><disks>${list.join("")}</disks></domainbackup>`,
  );
  return path;
}

async function attached(job: Job, ...args: string[]): Promise<Ran> {
  return await nbdpull(...attachArgs(await jobXml(job), repo()), ...args);
}

describe("an increment on a parent that cannot be restored", () => {
  let parent: string;
  beforeEach(async () => {
    expect((await attached({}, "--checkpoint", "cp0")).code).toBe(0);
    parent = (await stored())[0] ?? "";
  });

  it("is taken while the parent is sound", async () => {
    const ran = await attached({ incremental: "cp0" }, "--checkpoint", "cp1");
    expect([ran.code, ran.stderr]).toEqual([0, ""]);
    expect(await stored()).toHaveLength(2);
  });

  it.each([
    ["its image is gone", (image: string) => rm(image)],
    [
      "its image has become a folder",
      async (image: string) => {
        await rm(image);
        await mkdir(image);
      },
    ],
    ["its image is empty", (image: string) => writeFile(image, "")],
    ["its header has an unknown feature", (image: string) => patch(image, 72, 0x80)],
    ["its header is of version 4", (image: string) => patch(image, 7, 4)],
    ["its header has a wrong magic number", (image: string) => patch(image, 0, 0)],
    ["its manifest can't be read", (image: string) => writeFile(join(dirname(image), "point.json"), "{")],
  ])("is no increment but a full copy, which says why: %s", async (_, damage) => {
    await damage(join(repo(), DOMAIN, parent, "vda.qcow2"));
    chain.disk.write(CLUSTER, Buffer.alloc(CLUSTER, 0x77));
    const content = chain.show();
    const ran = await attached({ incremental: "cp0" }, "--checkpoint", "cp1");
    const reason = expect.stringMatching(
      new RegExp(`^an increment on ${parent} could not be restored: |^no point that can be read is of .*cp0`),
    );
    expect([ran.code, ran.json()]).toMatchObject([
      0,
      { level: "full", disks: [{ mode: "full", parent: null, reason }] },
    ]);
    const image = join(repo(), DOMAIN, (await stored())[1] ?? "", "vda.qcow2");
    const raw = join(chain.folder, "restored.raw");
    await qemuImg("convert", "-O", "raw", image, raw);
    expect(await readFile(raw)).toEqual(Buffer.from(await content.read(0, content.size)));
    // And on from there.
    const next = await attached({ incremental: "cp1" }, "--checkpoint", "cp2");
    expect([next.code, next.json()]).toMatchObject([0, { level: "incremental" }]);
  });
});

describe("an increment on a point of which one disk is damaged", () => {
  const disks = ["vda", "vdb"];

  it.each([
    // Only a look at the tables tells, after vda has got its base.
    ["an image is empty", (point: string) => writeFile(join(point, "vdb.qcow2"), "")],
    ["a verify has found it in a disk that the job lacks", (point: string) => record(point, { disk: "vdc" })],
    ["a verify has found it in the NVRAM", (point: string) => record(point, {})],
    // The digest of the first cluster, which no table tells anything of.
    ["only the proof of a base finds it", (point: string) => patch(join(point, "vdb.digests"), 80, 0xff)],
  ])("is for all disks a full copy where one is damaged, and can be copied: %s", async (how, damage) => {
    expect((await attached({ disks: [...disks, "vdc"] }, "--checkpoint", "cp0")).code).toBe(0);
    // The damage is in what the base is based on.
    expect((await attached({ disks, incremental: "cp0" }, "--checkpoint", "cp1")).code).toBe(0);
    const [oldest = "", base = ""] = await stored();
    await damage(join(repo(), DOMAIN, oldest));
    const ran = await attached({ disks, incremental: "cp1" }, "--checkpoint", "cp2");
    const reason = expect.stringMatching(
      new RegExp(`^an increment on ${base} could not be (restored|copied to another repository): `),
    );
    const full = { mode: "full", parent: null, reason };
    expect([ran.code, ran.json()]).toMatchObject([0, { level: "full", disks: [full, full] }]);
    // A proof notes what it has found, too.
    if (how.startsWith("only the proof")) {
      const noted = await readFile(join(repo(), DOMAIN, oldest, ".damage.json"), "utf8");
      expect(JSON.parse(noted)).toMatchObject({ places: [{ disk: "vdb" }] });
    }
    const next = await attached({ disks, incremental: "cp2" }, "--checkpoint", "cp3");
    expect([next.code, next.json()]).toMatchObject([0, { level: "incremental" }]);
    const copied = await nbdpull("copy", repo(), join(chain.folder, "copy"), "--create", "--json");
    const states = ["damaged", "damaged", "copied", "copied"].map((state) => ({ state }));
    expect([copied.code, copied.json()]).toMatchObject([3, { domains: [{ points: states }] }]);
  });
});

/** What a verify notes of a point. */
async function record(point: string, place: { readonly disk?: string }): Promise<void> {
  const places = [{ ...place, message: "it is not what was stored" }];
  const found = { format: "nbdpull-damage", version: 1, foundAt: new Date().toISOString(), places };
  await writeFile(join(point, ".damage.json"), JSON.stringify(found));
}

async function patch(path: string, at: number, value: number): Promise<void> {
  await using file = await open(path, "r+");
  await file.write(Buffer.from([value]), 0, 1, at);
}

describe("a job of one of two domains of a name", () => {
  const A = "aaaaaaaa-1111-4111-8111-111111111111";
  const B = "bbbbbbbb-2222-4222-8222-222222222222";

  it("is based on points of its own domain only, which --uuid tells", async () => {
    expect((await attached({}, "--checkpoint", "cp0", "--uuid", A)).code).toBe(0);
    // This point has no UUID, and is of A because it is based on a point of A.
    expect((await attached({ incremental: "cp0" }, "--checkpoint", "cp1")).code).toBe(0);
    for (const base of ["cp0", "cp1"]) {
      const ran = await attached({ incremental: base }, "--uuid", B);
      expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_OTHER_DOMAIN" } }]);
    }
    const other = await attached({}, "--checkpoint", "cp1", "--uuid", B);
    expect(other.json()).toMatchObject({ uuid: B, folder: expect.stringContaining(`${DOMAIN}@bbbbbbbb/`) });
    const unsaid = await attached({ incremental: "cp1" });
    expect([unsaid.code, unsaid.json()]).toMatchObject([
      2,
      { error: { code: "E_WHICH_DOMAIN", uuids: [A, B] } },
    ]);
    const [, second] = await stored();
    const third = await attached({ incremental: "cp1" }, "--uuid", A);
    expect(third.json()).toMatchObject({ disks: [{ parent: second }] });
    expect((await nbdpull("verify", repo())).code).toBe(0);
    expect((await nbdpull("attach", "--to", repo(), "--uuid", "aaaaaaaa", "--domain", DOMAIN)).code).toBe(2);
    expect((await nbdpull("attach", DOMAIN, "--to", repo(), "--uuid", A)).code).toBe(2);
  });
});

describe("two writers of one domain", () => {
  it("take turns, and both points are stored", async () => {
    const xml = await jobXml({ disks: ["vda", "vdb"] });
    const slowly = ["--limit-rate", "4M", "--request-size", "64K"];
    const runs = [slowly, []].map((more) => startNbdpull([...attachArgs(xml, repo()), ...more]));
    const rans = await Promise.all(runs.map(finished));
    expect(rans.map(({ code }) => code)).toEqual([0, 0]);
    const ids = rans.map((ran) => (ran.json() as { id: string }).id);
    expect(new Set(ids).size).toBe(2);
    expect(await stored()).toEqual([...ids].sort());
    expect((await nbdpull("verify", repo())).code).toBe(0);
  });
});

describe("a first point that fails", () => {
  it("leaves no folder for its domain", async () => {
    const xml = await jobXml({ socket: "none.sock" });
    for (const to of [repo(), join(chain.folder, "new")]) {
      expect((await nbdpull(...attachArgs(xml, to))).code).toBe(1);
      expect((await readdir(to).catch(() => [])).filter((name) => name !== "nbdpull.json")).toEqual([]);
    }
  });

  it("names the disk", async () => {
    const ran = await attached({ disks: ["vda", "vdb"], socket: "none.sock" });
    expect(ran.stderr).toMatch(/^nbdpull: \w+: vd[ab]: /m);
    const message = expect.stringMatching(/^vd[ab]: /);
    expect(ran.json()).toMatchObject({
      error: { code: "NBD_CONNECT_FAILED", disk: expect.stringMatching(/^vd[ab]$/), message },
    });
  });

  it("does not prevent later points", async () => {
    expect((await attached({ socket: "none.sock" })).code).toBe(1);
    expect((await attached({ disks: ["vda", "vdb"] })).code).toBe(0);
    expect(await stored()).toHaveLength(1);
  });
});

describeWith(["nbdkit"], "an export that fails", () => {
  it("is reported with the disk, the errno and the offset", async () => {
    const socket = join(chain.folder, "nbdkit.sock");
    const error = ["error-pread=EIO", "error-pread-rate=100%"];
    const options = ["-f", "-U", socket, "--filter=error", "pattern", "8M", ...error];
    await using _ = await startServer("nbdkit", options, () => listensOn(socket));
    const ran = await attached({ disks: ["sda"], socket: "nbdkit.sock" });
    expect(ran.code).toBe(1);
    expect(ran.json()).toMatchObject({
      error: { code: "NBD_REQUEST_FAILED", disk: "sda", errno: "EIO", offset: expect.any(Number) },
    });
    expect(ran.stderr).toMatch(/^nbdpull: \w+: sda: /m);
    expect(await stored()).toEqual([]);
  });
});

describe.skipIf(SKIP_WITHOUT_ROOT)("a full file system (needs root)", () => {
  it("makes attach exit with 1 and leave nothing", async () => {
    const small = join(chain.folder, "small");
    await mkdir(small);
    await execa("mount", ["-t", "tmpfs", "-o", "size=1M", "tmpfs", small]);
    try {
      const ran = await nbdpull(...attachArgs(await jobXml(), join(small, "repo")));
      expect([ran.code, ran.json()]).toMatchObject([1, { error: { disk: "vda" } }]);
      expect(ran.stderr).toMatch(/^nbdpull: .*no space left.*vda: /m);
      expect(await readdir(join(small, "repo"))).toEqual(["nbdpull.json"]);
    } finally {
      await execa("umount", [small]);
    }
  });
});

describe("an interrupted attach", () => {
  it("leaves the repository as it was", async () => {
    const run = startNbdpull([
      ...attachArgs(await jobXml(), repo()),
      "--limit-rate",
      "500K",
      "--request-size",
      "64K",
    ]);
    await expect.poll(stored).toContainEqual(expect.stringMatching(/\.partial$/));
    run.kill("SIGINT");
    expect((await finished(run)).code).toBe(130);
    expect(await readdir(repo())).toEqual(["nbdpull.json"]);
    expect(await readFile(join(repo(), "nbdpull.json"), "utf8")).toContain(chain.repository.id);
  });
});
