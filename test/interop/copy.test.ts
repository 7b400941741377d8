import { createHash } from "node:crypto";
import {
  copyFile,
  cp,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  truncate,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type CopiedPoint, type CopyResult, copyDomain } from "../../src/backup/copy/copy-points.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { ageLocks } from "../support/left-by-prune.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { beginsWith } from "../support/same-bytes.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;

let chain: MemoryChain;
let from: string;
let to: string;
/** A full point and three increments, of a disk that ends inside a sector. */
beforeEach(async () => {
  chain = await MemoryChain.start(8 * MiB + 577);
  from = chain.repository.path;
  to = join(chain.folder, "copy");
  chain.disk.write(0, Buffer.alloc(3 * MiB, "first"));
  await chain.take({ full: true, digests: "sha256", granularity: 4096 });
  for (const round of [1, 2, 3]) await takeIncrement(round);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

async function takeIncrement(round: number): Promise<void> {
  chain.disk.write(round * 700_000, Buffer.alloc(200_000, `round ${round}`));
  chain.disk.write(5 * MiB + round * 4096, Buffer.alloc(4096, round));
  chain.disk.writeZeroes(round * 300_000, 100_000);
  await chain.take({ digests: "sha256", granularity: 4096 });
}

const ids = (): string[] => chain.points.map(({ id }) => id);

function copy(...more: readonly string[]): Promise<Ran> {
  return nbdpull("copy", from, to, "--create", ...more);
}

async function copied(...more: readonly string[]): Promise<readonly CopiedPoint[]> {
  const ran = await copy("--json", ...more);
  return (ran.json() as { domains: CopyResult[] }).domains[0]?.points ?? [];
}

const statesOf = (points: readonly CopiedPoint[]): string[] => points.map(({ state }) => state);

/** The copy stands alone: its points verify, and stock QEMU opens them. */
async function expectSound(wanted: readonly string[]): Promise<void> {
  await rename(from, `${from}.away`);
  try {
    const repository = await Repository.open(to);
    expect(await repository.pointIds(NAME)).toEqual(wanted);
    const verified = await nbdpull("verify", to);
    expect(verified).toMatchObject({ code: 0 });
    const theirs = join(chain.folder, "theirs.raw");
    for (const id of wanted) {
      await qemuImg("convert", "-O", "raw", join(repository.pointFolder(NAME, id), "vda.qcow2"), theirs);
      expect(beginsWith(theirs, await chain.contentOf(id))).toBe(true);
    }
  } finally {
    await rename(`${from}.away`, from);
  }
}

/** The SHA-256 of every file below a folder, by its path. */
async function filesOf(folder: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || ["nbdpull.json", ".copied.json"].includes(entry.name)) continue;
    const path = join(entry.parentPath, entry.name);
    found[path.slice(folder.length)] = createHash("sha256")
      .update(await readFile(path))
      .digest("hex");
  }
  return found;
}

/** Points, and what killed runs have left. */
async function namesIn(folder: string): Promise<string[]> {
  return (await readdir(folder)).filter((name) => name !== ".copied.json" && !name.startsWith(".reader"));
}

function imageOf(repository: string, point: number, file = "vda.qcow2"): string {
  return join(repository, NAME, ids()[point] ?? "", file);
}

async function flip(path: string, at: number): Promise<void> {
  await using handle = await open(path, "r+");
  const byte = Buffer.alloc(1);
  await handle.read(byte, 0, 1, at);
  await handle.write(Buffer.from([~(byte[0] ?? 0) & 0xff]), 0, 1, at);
}

describeWith(["qemu-img"], "a copy of a repository", () => {
  it("has the same points, file by file, and later only what is missing", async () => {
    expect(statesOf(await copied())).toEqual(["copied", "copied", "copied", "copied"]);
    expect(await filesOf(to)).toEqual(await filesOf(from));
    await expectSound(ids());
    const again = await copy();
    expect(again).toMatchObject({ code: 0 });
    expect(again.stdout).toMatch(/copied 0 of 4 points, 0 B; 4 were there/);
    await takeIncrement(4);
    const ran = await copied();
    expect(statesOf(ran)).toEqual(["there", "there", "there", "there", "copied"]);
    expect(ran.at(-1)?.bytes).toBeLessThan(MiB);
    await expectSound(ids());
    // It is a repository of its own.
    const idOf = async (path: string) => (await Repository.open(path)).id;
    expect(await idOf(to)).not.toBe(await idOf(from));
  });

  it("has a point as it was before a merge that is under way in a store", async () => {
    // As it lies there: the image has gone aside, and another one takes its name.
    const [path, image] = [imageOf(from, 1, "point.json"), imageOf(from, 1)];
    const [text, bytes] = [await readFile(path, "utf8"), await readFile(image)];
    const aside = "vda.qcow2~1b2c3d4e";
    const merging = { aside: { [aside]: "vda.qcow2" }, revision: "of that merge", other: "kept" };
    const during = { ...(JSON.parse(text.replace('"vda.qcow2"', `"${aside}"`)) as object), ...merging };
    await rename(image, imageOf(from, 1, aside));
    await writeFile(image, "a half");
    await writeFile(path, JSON.stringify(during));
    expect(statesOf(await copied())).toEqual(["copied", "copied", "copied", "copied"]);
    const theirs = JSON.parse(await readFile(imageOf(to, 1, "point.json"), "utf8")) as object;
    expect(theirs).toEqual({ ...(JSON.parse(text) as object), other: "kept" });
    expect(statesOf(await copied())).toEqual(["there", "there", "there", "there"]);
    await writeFile(path, text);
    await writeFile(image, bytes);
    await rm(imageOf(from, 1, aside));
    await takeIncrement(4);
    expect(statesOf(await copied())).toEqual(["there", "there", "there", "there", "copied"]);
    await expectSound(ids());
  });

  it("can have the newest point alone, or those since a time, with their chains", async () => {
    await chain.take({ full: true, digests: "sha256" });
    await takeIncrement(5);
    expect(statesOf(await copied("--latest"))).toEqual(["copied", "copied"]);
    await expectSound(ids().slice(4));
    const since = chain.points[3]?.createdAt ?? "";
    expect(statesOf(await copied("--since", since))).toEqual([
      "copied",
      "copied",
      "copied",
      "copied",
      "there",
      "there",
    ]);
    await expectSound(ids());
    expect((await copy("--since", "yesterday")).code).toBe(2);
    expect((await copy("--since", since, "--latest")).code).toBe(2);
  });

  it("tells what it would do, and writes nothing, with --dry-run", async () => {
    await nbdpull("init", to);
    const before = await filesOf(to);
    const ran = await copy("--dry-run");
    expect(ran.stdout).toMatch(/would copy 4 of 4 points, [\d.]+ MiB; 0 were there/);
    expect(await filesOf(to)).toEqual(before);
    expect(await readdir(to)).toEqual(["nbdpull.json"]);
  });

  it("keeps raw points and their maps, and leaves holes holes", async () => {
    const raw = await MemoryChain.start(64 * MiB);
    try {
      raw.disk.write(32 * MiB, Buffer.alloc(MiB, "raw"));
      await raw.take({ full: true, format: "raw", digests: "sha256" });
      raw.disk.write(40 * MiB, Buffer.alloc(MiB, "more"));
      await raw.take({ format: "raw", digests: "sha256" });
      const ran = await nbdpull("copy", raw.repository.path, to, "--create");
      expect(ran).toMatchObject({ code: 0 });
      expect(await filesOf(to)).toEqual(await filesOf(raw.repository.path));
      const image = await stat(join(to, NAME, raw.points[0]?.id ?? "", "vda.raw"));
      expect(image.size).toBe(64 * MiB);
      expect(image.blocks * 512).toBeLessThanOrEqual(2 * MiB);
      expect(await nbdpull("verify", to)).toMatchObject({ code: 0 });
    } finally {
      await raw[Symbol.asyncDispose]();
    }
  });

  it("takes over neither a damaged point nor what is based on it, and says so", async () => {
    await chain.take({ full: true, digests: "sha256" });
    await flip(imageOf(from, 1), 65_536 + 50_000);
    const ran = await copy();
    expect(ran.code).toBe(3);
    expect(ran.stdout).toMatch(new RegExp(`${ids()[1]} NOT copied: disk vda: .*digest`));
    expect(ran.stdout).toMatch(
      new RegExp(`${ids()[2]} NOT copied: disk vda of point ${ids()[2]} is based on point ${ids()[1]}`),
    );
    const sound = ids().filter((_, i) => i === 0 || i === 4);
    await expectSound(sound);
    expect(await namesIn(join(to, NAME))).toEqual(sound);
    // Mended, it comes along.
    await flip(imageOf(from, 1), 65_536 + 50_000);
    expect(statesOf(await copied())).toEqual(["there", "copied", "copied", "copied", "there"]);
    await expectSound(ids());
  });

  it("notices a file that is exchanged between being copied and being proven", async () => {
    const image = imageOf(from, 0);
    const other = join(chain.folder, "other.qcow2");
    await copyFile(image, other);
    await nbdpull("init", to);
    const [source, target] = [await Repository.open(from), await Repository.open(to)];
    await flip(image, 65_536 + 50_000);
    const options = { from: source, to: target, domain: NAME, signal: new AbortController().signal };
    let isExchanged = false;
    const result = await copyDomain({
      ...options,
      onProgress: () => {
        // The damaged bytes have been copied; what is looked at now would be sound.
        if (isExchanged) return;
        isExchanged = true;
        void rename(other, image);
      },
    });
    expect(result.points[0]).toMatchObject({ state: "damaged" });
    expect(await target.pointIds(NAME)).not.toContain(ids()[0]);
  });

  it("is not sent again what a prune has merged, on either side", async () => {
    await copied();
    expect((await nbdpull("prune", from, "--keep-last", "2")).code).toBe(0);
    const before = await filesOf(to);
    expect(statesOf(await copied())).toEqual(["there", "there"]);
    expect(await filesOf(to)).toEqual(before);
    await takeIncrement(4);
    const [, , added] = await copied();
    expect(added).toMatchObject({ state: "copied" });
    expect(added?.bytes).toBeLessThan(MiB);
    await expectSound(ids());
    expect((await nbdpull("prune", to, "--keep-last", "1")).code).toBe(0);
    await expectSound(ids().slice(4));
    await takeIncrement(5);
    const states = statesOf(await copied("--latest"));
    expect(states.at(-1)).toBe("copied");
    expect((await nbdpull("verify", to)).code).toBe(0);
  });

  it("refuses a point of the same id with another content, and another domain's folder", async () => {
    await copied();
    // Another history of the same domain, as from a repository that was copied by hand and went on.
    const manifest = imageOf(to, 3, "point.json");
    const text = await readFile(manifest, "utf8");
    await writeFile(manifest, text.replace('"tool": "', '"tool": "other '));
    expect(await copy()).toMatchObject({ code: 0 });
    // The same clusters, with another content, under the same id.
    chain.disk.write(3 * 700_000, Buffer.alloc(200_000, "another round"));
    await chain.take({ digests: "sha256", granularity: 4096 });
    const [third = "", other = ""] = ids().slice(3);
    await rm(join(to, NAME, third), { recursive: true });
    await rename(join(from, NAME, other), join(to, NAME, third));
    const forged = (await readFile(manifest, "utf8"))
      .replaceAll(third, ids()[2] ?? "")
      .replaceAll(other, third);
    await writeFile(manifest, forged);
    const ran = await copy();
    expect(ran.code).toBe(3);
    expect(ran.stderr).toMatch(
      /is another one in .*copy than in .*the content of disk vda differs at byte \d+/,
    );
    await rm(join(to, NAME), { recursive: true });
    await cp(join(from, NAME), join(to, NAME), { recursive: true });
    for (const [repository, uuid] of [
      [from, "7bd9d97e-7a07-4a6c-8d0c-3c0ec6b9e9aa"],
      [to, "11111111-7a07-4a6c-8d0c-3c0ec6b9e9aa"],
    ] as const) {
      for (const id of await readdir(join(repository, NAME))) {
        const path = join(repository, NAME, id, "point.json");
        const changed = JSON.parse(await readFile(path, "utf8")) as { domain: { uuid: string | null } };
        changed.domain.uuid = uuid;
        await writeFile(path, JSON.stringify(changed));
      }
    }
    const refused = await copy();
    expect(refused.code).toBe(4);
    expect(refused.stderr).toContain("has points of another domain");
  });

  it.each([
    ["its manifest can't be read", (path: string) => writeFile(join(path, "point.json"), "{")],
    ["its image is gone", (path: string) => rm(join(path, "vda.qcow2"))],
  ])(
    "puts nothing on a point that is damaged there (%s), and copies what does not need it",
    async (_, damage) => {
      expect(statesOf(await copied())).not.toContain("damaged");
      await chain.take({ full: true, digests: "sha256" });
      await takeIncrement(4);
      await rm(join(to, NAME, ids()[3] ?? ""), { recursive: true });
      await damage(join(to, NAME, ids()[0] ?? ""));
      const before = await readFile(imageOf(to, 1));
      const ran = await copy("--json");
      expect(ran.code).toBe(3);
      const { points = [], copiedBytes } = (ran.json() as { domains: CopyResult[] }).domains[0] ?? {};
      expect(statesOf(points)).toEqual(["damaged", "there", "there", "damaged", "copied", "copied"]);
      expect(points[0]?.message).toMatch(/it is damaged in .*copy \(.*\): repair it there, or remove it/);
      expect(copiedBytes).toBeLessThan(9 * MiB);
      expect(before.equals(await readFile(imageOf(to, 1)))).toBe(true);
      // Removed there, it comes again, and what needs it after it.
      await rm(join(to, NAME, ids()[0] ?? ""), { recursive: true });
      expect(statesOf(await copied())).not.toContain("damaged");
      await expectSound(ids());
    },
  );

  it("copies newer points though an old one's digests are damaged after a prune", async () => {
    await copied();
    expect((await nbdpull("prune", to, "--keep-last", "2")).code).toBe(0);
    const digests = imageOf(from, 2, "vda.digests");
    await flip(digests, (await stat(digests)).size - 40);
    await chain.take({ full: true, digests: "sha256" });
    const points = await copied("--latest");
    expect(statesOf(points)).toEqual(["copied"]);
    const all = await copied("--all");
    expect(statesOf(all)).toEqual(["copied", "copied", "damaged", "there", "there"]);
  });

  it("compares zeroes with data, and copies nothing where histories differ", async () => {
    await nbdpull("copy", from, to, "--create");
    const other = await MemoryChain.start(8 * MiB + 577);
    try {
      // The same id, and a disk of zeroes.
      await other.take({ full: true, digests: "sha256" });
      const [id = "", theirs = ""] = [ids()[0], other.points[0]?.id];
      await rm(join(to, NAME), { recursive: true });
      await cp(join(other.repository.path, NAME, theirs), join(to, NAME, id), { recursive: true });
      const manifest = join(to, NAME, id, "point.json");
      await writeFile(manifest, (await readFile(manifest, "utf8")).replaceAll(theirs, id));
      await chain.take({ full: true, digests: "sha256" });
      const ran = await copy();
      expect(ran.code).toBe(3);
      expect(ran.stderr).toMatch(/E_COPY_DIFFERS.*the content of disk vda differs at byte 0/);
      expect(await readdir(join(to, NAME))).toEqual([id]);
    } finally {
      await other[Symbol.asyncDispose]();
    }
  });

  it("takes no more of a file than its manifest lets it have", async () => {
    await truncate(imageOf(from, 0, "vda.digests"), 2 ** 40);
    await truncate(imageOf(from, 3), 2 ** 40);
    const points = await copied();
    expect(statesOf(points)).toEqual(["damaged", "damaged", "damaged", "damaged"]);
    expect(points[0]?.message).toMatch(/vda.digests has 1099511627776 bytes, and by its manifest at most/);
    expect(await readdir(to)).toEqual(["nbdpull.json"]);
  });

  it("keeps fields of a manifest that this version knows nothing of", async () => {
    const path = imageOf(from, 0, "point.json");
    const changed = { ...(JSON.parse(await readFile(path, "utf8")) as object), later: { version: 9 } };
    await writeFile(path, JSON.stringify(changed));
    await copied();
    expect(await readFile(imageOf(to, 0, "point.json"), "utf8")).toBe(JSON.stringify(changed));
  });

  it("goes on after it was killed at any moment, and leaves nothing of that", async () => {
    chain.disk.write(0, Buffer.alloc(8 * MiB, "much"));
    await chain.take({ full: true, digests: "sha256" });
    await nbdpull("init", to);
    const names = async (): Promise<string> => (await readdir(join(to, NAME)).catch(() => [])).join(" ");
    const left: string[] = [];
    for (const rate of [200_000, 2 * MiB, 6 * MiB]) {
      const earlier = await names();
      const running = startNbdpull(["copy", from, to, "--limit-rate", `${rate}`]);
      await expect.poll(names, { interval: 5 }).not.toBe(earlier);
      await new Promise((resolve) => setTimeout(resolve, 400));
      running.kill("SIGKILL");
      await running.ended;
      left.push(await names());
      // Nobody has to wait until it counts as dead.
      await ageLocks(join(to, NAME));
      for (const id of await (await Repository.open(to)).pointIds(NAME)) expect(ids()).toContain(id);
    }
    expect(left.join(" ")).toContain(".partial");
    expect(await copy()).toMatchObject({ code: 0 });
    await expectSound(ids());
    expect(await namesIn(join(to, NAME))).toEqual(ids());
  });

  it("ends at SIGTERM without half a point", async () => {
    await nbdpull("init", to);
    const running = startNbdpull(["copy", from, to, "--limit-rate", "500000"]);
    await expect.poll(() => readdir(join(to, NAME)).catch(() => []), { interval: 5 }).not.toEqual([]);
    running.kill("SIGTERM");
    expect((await running.ended)?.code).not.toBe(0);
    expect(await readdir(to)).toEqual(["nbdpull.json"]);
  });
});

describe("nbdpull copy", () => {
  it("says what is wrong with its arguments", async () => {
    const missing = await nbdpull("copy", from, to);
    expect(missing.code).toBe(4);
    expect(missing.stderr).toContain("nbdpull init");
    const nothing = await nbdpull("copy", join(chain.folder, "none"), to, "--create");
    expect(nothing.code).toBe(4);
    const same = await nbdpull("copy", from, `${from}/.`);
    expect(same.code).toBe(2);
    expect(same.stderr).toContain("are the same repository");
    const unknown = await copy("nobody");
    expect(unknown.code).toBe(4);
    expect(unknown.stderr).toContain("no domain nobody");
    await mkdir(join(chain.folder, "full/of"), { recursive: true });
    expect((await nbdpull("copy", from, join(chain.folder, "full"), "--create")).code).toBe(2);
  });
});
