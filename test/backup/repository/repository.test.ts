import { cp, mkdir, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DamageError, UsageError } from "../../../src/backup/base/errors.js";
import { prune } from "../../../src/backup/prune/prune.js";
import { choosePoint } from "../../../src/backup/repository/choose-point.js";
import { folderNameOf } from "../../../src/backup/repository/folder-name.js";
import { Repository } from "../../../src/backup/repository/repository.js";
import { verifyPoints } from "../../../src/backup/verify/verify.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { nbdpull } from "../../support/nbdpull.js";
import { restoreDisk } from "../../support/restore-disk.js";

const CLUSTER = 64 * 1024;
const SIZE = 20 * CLUSTER;
const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(0, Buffer.alloc(4 * CLUSTER, 0x11));
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const domainFolder = (): string => join(chain.repository.path, DOMAIN);

async function twoPoints(): Promise<[string, string]> {
  const first = await chain.take();
  chain.disk.write(CLUSTER, Buffer.alloc(512, 0x22));
  const second = await chain.take();
  return [first.manifest.id, second.manifest.id];
}

/** The IDs of the points with findings of verify. */
async function damaged(domain = DOMAIN): Promise<string[]> {
  const ids = await chain.repository.pointIds(domain);
  const reports = await verifyPoints(chain.repository, domain, ids);
  return reports.flatMap(({ findings }) => findings.map(({ point }) => point));
}

describe("the list of points", () => {
  it("shows what each point is based on, and at the end how many points the newest one needs", async () => {
    const [first, second] = await twoPoints();
    const ran = await nbdpull("points", chain.repository.path, "--long");
    expect(ran.stdout.split("\n")).toEqual([
      expect.stringMatching(
        new RegExp(`^${DOMAIN}  ${first}  \\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d  full  `),
      ),
      expect.stringMatching(/^ {4}vda {2}.*, full, .* stored$/),
      expect.stringContaining(`  ${second}  `),
      expect.stringMatching(new RegExp(`^ {4}vda {2}.* changed since ${first}, .* stored$`)),
      expect.stringMatching(
        new RegExp(`^${DOMAIN}: 2 points, .* stored; the newest is based on 1 of the others$`),
      ),
    ]);
  });
});

describe("anything but a point", () => {
  it.each([
    [
      "a file that is named like a point",
      () => writeFile(join(domainFolder(), "20200101T000000.000Z"), "stray"),
    ],
    ["a folder whose name is no date", () => mkdir(join(domainFolder(), "99999999T999999.999Z"))],
    ["a folder of the 31st of February", () => mkdir(join(domainFolder(), "20260231T000000.000Z"))],
  ])("is skipped, and hinders neither readers nor the next point: %s", async (_, put) => {
    const ids = await twoPoints();
    await put();
    expect(await chain.repository.pointIds(DOMAIN)).toEqual(ids);
    expect(await damaged()).toEqual([]);
    const ran = await nbdpull("points", chain.repository.path, "--json");
    expect([ran.code, ran.stderr]).toEqual([0, ""]);
    const third = await chain.take();
    expect(third.manifest.disks[0]?.parent).toBe(ids[1]);
    expect(await chain.repository.pointIds(DOMAIN)).toEqual([...ids, third.manifest.id]);
  });

  it("is a damaged point if only its manifest is not a file", async () => {
    const [first, second] = await twoPoints();
    await rm(chain.pathOf(await chain.repository.point(DOMAIN, second), "point.json"));
    await mkdir(join(domainFolder(), second, "point.json"));
    await expect(chain.repository.point(DOMAIN, second)).rejects.toBeInstanceOf(DamageError);
    const damages: string[] = [];
    const points = await chain.repository.points(DOMAIN, ({ code }) => damages.push(code));
    expect([points.map(({ id }) => id), damages]).toEqual([[first], ["E_MANIFEST"]]);
    expect(await damaged()).toEqual([second]);
    const listed = await nbdpull("points", chain.repository.path, "--json");
    expect(listed.code).toBe(3);
    expect(listed.json()).toMatchObject([{ id: first }]);
    expect((await nbdpull("verify", chain.repository.path)).code).toBe(3);
  });
});

describe("a repository's folder", () => {
  it("may be a fresh file system with lost+found, which is not taken for a domain", async () => {
    const path = join(chain.folder, "fresh");
    await mkdir(join(path, "lost+found"), { recursive: true });
    const repository = await Repository.openOrCreate(path);
    expect(await repository.domains()).toEqual([]);
    expect((await readdir(path)).sort()).toEqual(["lost+found", "nbdpull.json"]);
  });

  it("is not made if something else is there", async () => {
    const path = join(chain.folder, "full");
    await mkdir(path);
    await writeFile(join(path, "thesis.txt"), "");
    await expect(Repository.openOrCreate(path)).rejects.toMatchObject({ code: "E_NOT_A_REPOSITORY" });
    const file = join(path, "thesis.txt");
    await expect(Repository.openOrCreate(file)).rejects.toBeInstanceOf(UsageError);
    await expect(Repository.open(file)).rejects.toMatchObject({ code: "E_NO_REPOSITORY" });
    expect(await readdir(path)).toEqual(["thesis.txt"]);
  });

  it("is not written to when it is gone, as from a file system that was unmounted", async () => {
    const path = join(chain.folder, "mounted");
    const repository = await Repository.openOrCreate(path, { trusted: true });
    const writers = [
      () => prune({ repository, domain: DOMAIN, retention: { last: 1 }, dryRun: false, sync: false }),
      () => repository.withPendingPoint(DOMAIN, async () => undefined),
    ];
    await rm(join(path, "nbdpull.json"));
    for (const write of writers) await expect(write()).rejects.toMatchObject({ code: "E_NO_REPOSITORY" });
    expect(await readdir(path)).toEqual([]);
    await rm(path, { recursive: true });
    for (const write of writers) await expect(write()).rejects.toMatchObject({ code: "E_NO_REPOSITORY" });
    expect(await readdir(chain.folder)).not.toContain("mounted");
  });

  it.each([
    ["the name of the repository's own file", "nbdpull.json"],
    ["one that is too long for a file", "x".repeat(300)],
    ["two hundred letters that are too long in bytes", "ü".repeat(200)],
    ["the parent", ".."],
    ["a path", "a/b"],
    ["a hidden name", ".guest"],
    ["a null byte", "a\0b"],
  ])("has another folder for a domain with a name that no folder can have: %s", async (_, name) => {
    const { repository } = chain;
    let inside: string[] = [];
    await repository.withPendingPoint(name, async () => {
      inside = await readdir(repository.path);
    });
    const [folder = ""] = inside.filter((each) => each !== "nbdpull.json");
    expect(inside).toHaveLength(2);
    expect(folder).toMatch(/^[^./][^/]*~[0-9a-f]{16}$/);
    expect(folder).toBe(folderNameOf(name));
    // It can be called by the folder's name too.
    expect(folderNameOf(folder)).toBe(folder);
    expect(Buffer.byteLength(folder)).toBeLessThan(180);
    // Nothing was stored, so the folder is gone.
    expect(await readdir(repository.path)).toEqual(["nbdpull.json"]);
  });

  it("has no domain without a name, and different folders for names that look alike", async () => {
    const pending = chain.repository.withPendingPoint("", async () => undefined);
    await expect(pending).rejects.toMatchObject({ code: "E_DOMAIN_NAME" });
    const alike = [".a", "_a", "./a", "/.a", "..a", `${"x".repeat(200)}1`, `${"x".repeat(200)}2`];
    expect(new Set(alike.map(folderNameOf)).size).toBe(alike.length);
    for (const name of ["web", "a b", "-x", "%2e", "lost+found", "x".repeat(200)]) {
      expect(folderNameOf(name)).toBe(name);
    }
  });

  it("lists the points of a domain called like a folder that a file system has made", async () => {
    await twoPoints();
    await cp(domainFolder(), join(chain.repository.path, "lost+found"), { recursive: true });
    expect(await chain.repository.domains()).toEqual([DOMAIN, "lost+found"].sort());
  });

  it("contains no folder for a domain whose first point failed", async () => {
    const failure = chain.take({
      confirm: async () => {
        throw new Error("the job ended");
      },
    });
    await expect(failure).rejects.toThrow("the job ended");
    expect(await readdir(chain.repository.path)).toEqual(["nbdpull.json"]);
  });

  it("keeps the earlier points of a domain when a later one fails", async () => {
    const ids = await twoPoints();
    const failure = chain.take({
      confirm: async () => {
        throw new Error("the job ended");
      },
    });
    await expect(failure).rejects.toThrow("the job ended");
    expect(await readdir(domainFolder())).toEqual(ids);
  });
});

describe("the lock of a domain", () => {
  it("ends the work at once when it is lost, and nothing is committed", async () => {
    const started = performance.now();
    const work = chain.repository.withPendingPoint(DOMAIN, async ({ signal }) => {
      await rm(join(domainFolder(), ".lock"), { recursive: true });
      await sleep(300_000, undefined, { signal }).catch(() => signal.throwIfAborted());
    });
    await expect(work).rejects.toMatchObject({ code: "E_LOCK_LOST" });
    expect(performance.now() - started).toBeLessThan(200_000);
    expect(await chain.repository.pointIds(DOMAIN)).toEqual([]);
  });

  it("keeps a writer that lost it from committing, even before it has noticed", async () => {
    const { manifest } = await chain.take();
    const work = chain.repository.withPendingPoint(DOMAIN, async (pending) => {
      await rm(join(domainFolder(), ".lock"), { recursive: true });
      // Another writer finds what looks like the remains of a dead run, and removes them.
      await chain.repository.withPendingPoint(DOMAIN, async () => undefined);
      await pending.commit({ ...manifest, id: pending.id }, { sync: false });
    });
    await expect(work).rejects.toBeInstanceOf(Error);
    expect(await readdir(domainFolder())).toEqual([manifest.id]);
  });
});

describe("a point that a killed run has begun", () => {
  const begun = { id: "20261129T181530.706Z", createdAt: new Date("2026-11-29T18:15:30.706Z") };
  const goOn = (): Promise<void> =>
    chain.repository.withPendingPoint(DOMAIN, async () => undefined, undefined, begun);

  it("is not gone on with when another run has cleared it away", async () => {
    await mkdir(domainFolder(), { recursive: true });
    await expect(goOn()).rejects.toMatchObject({ name: "PreconditionError", code: "E_LEFT_POINT" });
  });

  it("is not gone on with when another run has made a newer point, and is removed", async () => {
    await mkdir(join(domainFolder(), `.${begun.id}.partial`), { recursive: true });
    await mkdir(join(domainFolder(), begun.id));
    await expect(goOn()).rejects.toMatchObject({ name: "PreconditionError", code: "E_LEFT_POINT" });
    expect(await readdir(domainFolder())).toEqual([begun.id]);
  });
});

describe("a domain's folder that was copied under another name", () => {
  let original: Repository;
  let ids: [string, string];
  beforeEach(async () => {
    ids = await twoPoints();
    original = chain.repository;
    await cp(domainFolder(), join(original.path, "copy"), { recursive: true });
  });

  it("is verified from its own files", async () => {
    expect(await damaged("copy")).toEqual([]);
    await writeFile(join(original.path, "copy", ids[0], "vda.qcow2"), "damaged");
    expect(await damaged("copy")).toContain(ids[0]);
    expect(await damaged()).toEqual([]);
    expect((await nbdpull("verify", original.path, DOMAIN)).code).toBe(0);
    expect((await nbdpull("verify", original.path, "copy")).code).toBe(3);
  });

  it("is restored from its own files", async () => {
    const restored = async (): Promise<unknown> =>
      await restoreDisk({
        repository: original,
        domain: "copy",
        point: await choosePoint(original, "copy", "latest"),
        diskName: "vda",
        targetPath: join(chain.folder, "restored.raw"),
        format: "raw",
        force: true,
        sync: false,
      });
    await rm(domainFolder(), { recursive: true });
    await restored();
    const target = join(chain.folder, "all");
    expect((await nbdpull("restore", original.path, "copy", "--to", target)).code).toBe(0);
    await writeFile(join(original.path, "copy", ids[0], "vda.qcow2"), "damaged");
    await expect(restored()).rejects.toBeInstanceOf(DamageError);
    expect((await nbdpull("restore", original.path, "copy", "--to", join(chain.folder, "x"))).code).toBe(3);
  });
});

describe("a target inside the repository", () => {
  it("is refused, even through a link", async () => {
    const [first] = await twoPoints();
    const { path } = chain.repository;
    const link = join(chain.folder, "link");
    await symlink(path, link);
    const before = await readdir(path, { recursive: true });
    const targets = [
      path,
      join(path, "restored"),
      join(path, DOMAIN),
      join(path, DOMAIN, first),
      join(path, DOMAIN, first, "new.raw"),
      join(path, "new", "deep", "vda.raw"),
      join(link, "restored"),
      join(link, DOMAIN, "..", "x.raw"),
    ];
    for (const to of targets) {
      const one = to.endsWith(".raw") ? ["--disk", "vda"] : [];
      const ran = await nbdpull("restore", path, "--to", to, ...one, "--force", "--json");
      expect([to, ran.code, ran.json()]).toMatchObject([to, 2, { error: { code: "E_TARGET" } }]);
    }
    expect(await readdir(path, { recursive: true })).toEqual(before);
    const beside = await nbdpull("restore", path, "--to", `${path}-beside`);
    expect([beside.code, beside.stderr]).toEqual([0, ""]);
  });
});
