/** Copies of points that are damaged, or not the same: what is left out, and what is refused. */
import { copyFile, cp, readdir, readFile, rename, rm, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type CopyResult, copyDomain } from "../../src/backup/copy/copy-points.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { CopyLab, statesOf } from "../support/copy-lab.js";
import { flipByte } from "../support/flip-byte.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;

let lab: CopyLab;
let chain: MemoryChain;
let from: string;
let to: string;
beforeEach(async () => {
  lab = await CopyLab.start();
  ({ chain, from, to } = lab);
});
afterEach(async () => {
  await lab[Symbol.asyncDispose]();
});

describeWith(["qemu-img"], "a copy of a repository", () => {
  it("takes over neither a damaged point nor what is based on it, and says so", async () => {
    await chain.take({ full: true, digests: "sha256" });
    await flipByte(lab.imageOf(from, 1), 65_536 + 50_000);
    const ran = await lab.copy();
    expect(ran.code).toBe(3);
    expect(ran.stdout).toMatch(new RegExp(`${lab.ids()[1]} NOT copied: disk vda: .*digest`));
    expect(ran.stdout).toMatch(
      new RegExp(
        `${lab.ids()[2]} NOT copied: disk vda of point ${lab.ids()[2]} is based on point ${lab.ids()[1]}`,
      ),
    );
    const sound = lab.ids().filter((_, i) => i === 0 || i === 4);
    await lab.expectSound(sound);
    expect(await lab.namesInCopy()).toEqual(sound);
    // Mended, it comes along.
    await flipByte(lab.imageOf(from, 1), 65_536 + 50_000);
    expect(statesOf(await lab.copied())).toEqual(["there", "copied", "copied", "copied", "there"]);
    await lab.expectSound(lab.ids());
  });

  it("notices a file that is exchanged between being copied and being proven", async () => {
    const image = lab.imageOf(from, 0);
    const other = join(chain.folder, "other.qcow2");
    await copyFile(image, other);
    await nbdpull("init", to);
    const [source, target] = [await Repository.open(from), await Repository.open(to)];
    await flipByte(image, 65_536 + 50_000);
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
    expect(await target.pointIds(NAME)).not.toContain(lab.ids()[0]);
  });

  it("refuses a point of the same id with another content, and another domain's folder", async () => {
    await lab.copied();
    // Another history of the same domain, as from a repository that was copied by hand and went on.
    const manifest = lab.imageOf(to, 3, "point.json");
    const text = await readFile(manifest, "utf8");
    await writeFile(manifest, text.replace('"tool": "', '"tool": "other '));
    expect(await lab.copy()).toMatchObject({ code: 0 });
    // The same clusters, with another content, under the same id.
    chain.disk.write(3 * 700_000, Buffer.alloc(200_000, "another round"));
    await chain.take({ digests: "sha256", granularity: 4096 });
    const [third = "", other = ""] = lab.ids().slice(3);
    await rm(join(to, NAME, third), { recursive: true });
    await rename(join(from, NAME, other), join(to, NAME, third));
    const forged = (await readFile(manifest, "utf8"))
      .replaceAll(third, lab.ids()[2] ?? "")
      .replaceAll(other, third);
    await writeFile(manifest, forged);
    const ran = await lab.copy();
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
    const refused = await lab.copy();
    expect(refused.code).toBe(4);
    expect(refused.stderr).toContain("has points of another domain");
  });

  it.each([
    ["its manifest can't be read", (path: string) => writeFile(join(path, "point.json"), "{")],
    ["its image is gone", (path: string) => rm(join(path, "vda.qcow2"))],
  ])(
    "puts nothing on a point that is damaged there (%s), and copies what does not need it",
    async (_, damage) => {
      expect(statesOf(await lab.copied())).not.toContain("damaged");
      await chain.take({ full: true, digests: "sha256" });
      await lab.takeIncrement(4);
      await rm(join(to, NAME, lab.ids()[3] ?? ""), { recursive: true });
      await damage(join(to, NAME, lab.ids()[0] ?? ""));
      const before = await readFile(lab.imageOf(to, 1));
      const ran = await lab.copy("--json");
      expect(ran.code).toBe(3);
      const { points = [], copiedBytes } = (ran.json() as { domains: CopyResult[] }).domains[0] ?? {};
      expect(statesOf(points)).toEqual(["damaged", "there", "there", "damaged", "copied", "copied"]);
      expect(points[0]?.message).toMatch(/it is damaged in .*copy \(.*\): repair it there, or remove it/);
      expect(copiedBytes).toBeLessThan(9 * MiB);
      expect(before.equals(await readFile(lab.imageOf(to, 1)))).toBe(true);
      // Removed there, it comes again, and what needs it after it.
      await rm(join(to, NAME, lab.ids()[0] ?? ""), { recursive: true });
      expect(statesOf(await lab.copied())).not.toContain("damaged");
      await lab.expectSound(lab.ids());
    },
  );

  it("copies newer points though an old one's digests are damaged after a prune", async () => {
    await lab.copied();
    expect((await nbdpull("prune", to, "--keep-last", "2")).code).toBe(0);
    const digests = lab.imageOf(from, 2, "vda.digests");
    await flipByte(digests, (await stat(digests)).size - 40);
    await chain.take({ full: true, digests: "sha256" });
    const points = await lab.copied("--latest");
    expect(statesOf(points)).toEqual(["copied"]);
    const all = await lab.copied("--all");
    expect(statesOf(all)).toEqual(["copied", "copied", "damaged", "there", "there"]);
  });

  it("compares zeroes with data, and copies nothing where histories differ", async () => {
    await nbdpull("copy", from, to, "--create");
    const other = await MemoryChain.start(8 * MiB + 577);
    try {
      // The same id, and a disk of zeroes.
      await other.take({ full: true, digests: "sha256" });
      const [id = "", theirs = ""] = [lab.ids()[0], other.points[0]?.id];
      await rm(join(to, NAME), { recursive: true });
      await cp(join(other.repository.path, NAME, theirs), join(to, NAME, id), { recursive: true });
      const manifest = join(to, NAME, id, "point.json");
      await writeFile(manifest, (await readFile(manifest, "utf8")).replaceAll(theirs, id));
      await chain.take({ full: true, digests: "sha256" });
      const ran = await lab.copy();
      expect(ran.code).toBe(3);
      expect(ran.stderr).toMatch(/E_COPY_DIFFERS.*the content of disk vda differs at byte 0/);
      expect(await readdir(join(to, NAME))).toEqual([id]);
    } finally {
      await other[Symbol.asyncDispose]();
    }
  });

  it("takes no more of a file than its manifest lets it have", async () => {
    await truncate(lab.imageOf(from, 0, "vda.digests"), 2 ** 40);
    await truncate(lab.imageOf(from, 3), 2 ** 40);
    const points = await lab.copied();
    expect(statesOf(points)).toEqual(["damaged", "damaged", "damaged", "damaged"]);
    expect(points[0]?.message).toMatch(/vda.digests has 1099511627776 bytes, and by its manifest at most/);
    expect(await readdir(to)).toEqual(["nbdpull.json"]);
  });
});
