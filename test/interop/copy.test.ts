import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Repository } from "../../src/backup/repository/repository.js";
import { CopyLab, statesOf } from "../support/copy-lab.js";
import { ageLocks } from "../support/left-by-prune.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";
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

describeWith(["qemu-img"], "a copy of a repository", () => {
  it("has the same points, file by file, and later only what is missing", async () => {
    expect(statesOf(await lab.copied())).toEqual(["copied", "copied", "copied", "copied"]);
    expect(await filesOf(to)).toEqual(await filesOf(from));
    await lab.expectSound(lab.ids());
    const again = await lab.copy();
    expect(again).toMatchObject({ code: 0 });
    expect(again.stdout).toMatch(/copied 0 of 4 points, 0 B; 4 were there/);
    await lab.takeIncrement(4);
    const ran = await lab.copied();
    expect(statesOf(ran)).toEqual(["there", "there", "there", "there", "copied"]);
    expect(ran.at(-1)?.bytes).toBeLessThan(MiB);
    await lab.expectSound(lab.ids());
    // It is a repository of its own.
    const idOf = async (path: string) => (await Repository.open(path)).id;
    expect(await idOf(to)).not.toBe(await idOf(from));
  });

  it("has a point as it was before a merge that is under way in a store", async () => {
    // As it lies there: the image has gone aside, and another one takes its name.
    const [path, image] = [lab.imageOf(from, 1, "point.json"), lab.imageOf(from, 1)];
    const [text, bytes] = [await readFile(path, "utf8"), await readFile(image)];
    const aside = "vda.qcow2~1b2c3d4e";
    const merging = { aside: { [aside]: "vda.qcow2" }, revision: "of that merge", other: "kept" };
    const during = { ...(JSON.parse(text.replace('"vda.qcow2"', `"${aside}"`)) as object), ...merging };
    await rename(image, lab.imageOf(from, 1, aside));
    await writeFile(image, "a half");
    await writeFile(path, JSON.stringify(during));
    expect(statesOf(await lab.copied())).toEqual(["copied", "copied", "copied", "copied"]);
    const theirs = JSON.parse(await readFile(lab.imageOf(to, 1, "point.json"), "utf8")) as object;
    expect(theirs).toEqual({ ...(JSON.parse(text) as object), other: "kept" });
    expect(statesOf(await lab.copied())).toEqual(["there", "there", "there", "there"]);
    await writeFile(path, text);
    await writeFile(image, bytes);
    await rm(lab.imageOf(from, 1, aside));
    await lab.takeIncrement(4);
    expect(statesOf(await lab.copied())).toEqual(["there", "there", "there", "there", "copied"]);
    await lab.expectSound(lab.ids());
  });

  it("can have the newest point alone, or those since a time, with their chains", async () => {
    await chain.take({ full: true, digests: "sha256" });
    await lab.takeIncrement(5);
    expect(statesOf(await lab.copied("--latest"))).toEqual(["copied", "copied"]);
    await lab.expectSound(lab.ids().slice(4));
    const since = chain.points[3]?.createdAt ?? "";
    expect(statesOf(await lab.copied("--since", since))).toEqual([
      "copied",
      "copied",
      "copied",
      "copied",
      "there",
      "there",
    ]);
    await lab.expectSound(lab.ids());
    expect((await lab.copy("--since", "yesterday")).code).toBe(2);
    expect((await lab.copy("--since", since, "--latest")).code).toBe(2);
  });

  it("tells what it would do, and writes nothing, with --dry-run", async () => {
    await nbdpull("init", to);
    const before = await filesOf(to);
    const ran = await lab.copy("--dry-run");
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

  it("is not sent again what a prune has merged, on either side", async () => {
    await lab.copied();
    expect((await nbdpull("prune", from, "--keep-last", "2")).code).toBe(0);
    const before = await filesOf(to);
    expect(statesOf(await lab.copied())).toEqual(["there", "there"]);
    expect(await filesOf(to)).toEqual(before);
    await lab.takeIncrement(4);
    const [, , added] = await lab.copied();
    expect(added).toMatchObject({ state: "copied" });
    expect(added?.bytes).toBeLessThan(MiB);
    await lab.expectSound(lab.ids());
    expect((await nbdpull("prune", to, "--keep-last", "1")).code).toBe(0);
    await lab.expectSound(lab.ids().slice(4));
    await lab.takeIncrement(5);
    const states = statesOf(await lab.copied("--latest"));
    expect(states.at(-1)).toBe("copied");
    expect((await nbdpull("verify", to)).code).toBe(0);
  });

  it("keeps fields of a manifest that this version knows nothing of", async () => {
    const path = lab.imageOf(from, 0, "point.json");
    const changed = { ...(JSON.parse(await readFile(path, "utf8")) as object), later: { version: 9 } };
    await writeFile(path, JSON.stringify(changed));
    await lab.copied();
    expect(await readFile(lab.imageOf(to, 0, "point.json"), "utf8")).toBe(JSON.stringify(changed));
  });

  it("keeps fields of its record that this version knows nothing of, and a newer record as it is", async () => {
    const path = join(to, NAME, ".copied.json");
    await lab.copy();
    const known = JSON.parse(await readFile(path, "utf8")) as Record<string, unknown>;
    await writeFile(path, JSON.stringify({ ...known, later: { too: 2 } }));
    await lab.takeIncrement(4);
    expect(await lab.copy()).toMatchObject({ code: 0 });
    const { sources, ...others } = JSON.parse(await readFile(path, "utf8")) as { sources: object };
    expect(others).toEqual({ format: "nbdpull-copied", version: 1, later: { too: 2 } });
    expect(Object.values(sources)).toEqual([lab.ids()]);
    const newer = JSON.stringify({ format: "nbdpull-copied", version: 2, lists: [] });
    await writeFile(path, newer);
    await lab.takeIncrement(5);
    const blind = await lab.copy();
    expect(blind).toMatchObject({ code: 0 });
    expect(blind.stderr).toMatch(/\.copied\.json.* another version .* copies again what was pruned there/);
    expect(await readFile(path, "utf8")).toBe(newer);
    await rm(path);
    expect(await lab.copy()).toMatchObject({ code: 0, stderr: "" });
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
      if (left.length === 0) await expect.poll(names, { interval: 5 }).toContain(".partial");
      else await expect.poll(names, { interval: 5 }).not.toBe(earlier);
      await new Promise((resolve) => setTimeout(resolve, 400));
      running.kill("SIGKILL");
      await running.ended;
      left.push(await names());
      // Nobody has to wait until it counts as dead.
      await ageLocks(join(to, NAME));
      for (const id of await (await Repository.open(to)).pointIds(NAME)) expect(lab.ids()).toContain(id);
    }
    expect(left.join(" ")).toContain(".partial");
    expect(await lab.copy()).toMatchObject({ code: 0 });
    await lab.expectSound(lab.ids());
    expect(await lab.namesInCopy()).toEqual(lab.ids());
  });

  it("ends at SIGTERM without half a point", async () => {
    await nbdpull("init", to);
    const running = startNbdpull(["copy", from, to, "--limit-rate", "50000"]);
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
    const unknown = await lab.copy("nobody");
    expect(unknown.code).toBe(4);
    expect(unknown.stderr).toContain("no domain nobody");
    await mkdir(join(chain.folder, "full/of"), { recursive: true });
    expect((await nbdpull("copy", from, join(chain.folder, "full"), "--create")).code).toBe(2);
  });
});
