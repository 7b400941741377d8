import { createHash } from "node:crypto";
import { appendFile, chmod, chown, mkdir, readdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { formatManifest, type Manifest } from "../../src/backup/repository/manifest.js";
import { NO_ATTACKER } from "../support/attacker.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";
import { describeUnless } from "../support/tools.js";

const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
let point: Manifest;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  chain.disk.write(0, Buffer.alloc(256 * 1024, 0x11));
  point = (await chain.take()).manifest;
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

/** Adds a file to the point, as a forger would. */
async function addFile(mode: number): Promise<void> {
  const content = "#!/bin/sh\nid\n";
  const sha256 = createHash("sha256").update(content).digest("hex");
  const kernel = { role: "kernel", file: "kernel", source: "/boot/vmlinuz", length: content.length, sha256 };
  await writeFile(chain.pathOf(point, "kernel"), content);
  await chmod(chain.pathOf(point, "kernel"), mode);
  await writeFile(chain.pathOf(point, "point.json"), formatManifest({ ...point, files: [kernel] }));
}

const modeOf = async (path: string): Promise<string> => ((await stat(path)).mode & 0o7777).toString(8);

async function modesIn(folder: string): Promise<Record<string, string>> {
  const modes: Record<string, string> = { ".": await modeOf(folder) };
  for (const name of (await readdir(folder)).sort()) modes[name] = await modeOf(join(folder, name));
  return modes;
}

describe("a restore", () => {
  it.each([0o4755, 0o2755, 0o6777, 0o777])(
    "makes no program of a kept file, whatever its mode (%#)",
    async (mode) => {
      await addFile(mode);
      const to = join(chain.folder, "restored");
      const ran = await nbdpull("restore", chain.repository.path, "--to", to);
      expect([ran.code, ran.stderr.replace(/^warning: .* can write to .*kernel.*(\n|$)/, "")]).toEqual([
        0,
        "",
      ]);
      expect(await modesIn(to)).toEqual({ ".": "700", kernel: "600", "vda.raw": "600" });
    },
  );
});

describe("a repository", () => {
  it("is for its owner only, and so is everything in it, whatever the umask", async () => {
    const before = process.umask(0);
    try {
      const { manifest } = await chain.take();
      await mkdir(join(chain.folder, "above"), 0o755);
      const repo = join(chain.folder, "above", "new");
      await writeFile(join(chain.folder, "image"), Buffer.alloc(65_536, 1));
      const args = ["--to", repo, "--domain", "web", "--disk", "vda"];
      expect((await nbdpull("import", join(chain.folder, "image"), ...args)).code).toBe(0);
      expect(await modesIn(repo)).toEqual({ ".": "700", "nbdpull.json": "600", web: "700" });
      const folder = chain.repository.pointFolder(DOMAIN, manifest.id);
      expect(await modesIn(folder)).toEqual({
        ".": "700",
        "point.json": "600",
        "vda.digests": "600",
        "vda.qcow2": "600",
      });
    } finally {
      process.umask(before);
    }
  });

  it("of version 0.1 is tightened by the next write, which says so once, and by no dry run", async () => {
    const repo = chain.repository.path;
    const folder = join(repo, DOMAIN, point.id);
    for (const path of [repo, join(repo, DOMAIN), folder]) await chmod(path, 0o755);
    for (const name of await readdir(folder)) await chmod(join(folder, name), 0o644);
    await writeFile(join(chain.folder, "image"), Buffer.alloc(65_536, 1));
    // Something that a repair would mend.
    await appendFile(chain.pathOf(point, "vda.digests"), "x");
    const before = [await modesIn(join(repo, DOMAIN)), await modesIn(folder)];
    const dry: [number, ...string[]][] = [
      [0, "points", repo],
      [0, "points", repo, "--fix-clock", "--dry-run"],
      [0, "prune", repo, "--keep-last", "1", "--dry-run"],
      [3, "repair", repo, "--dry-run"],
    ];
    for (const [code, ...command] of dry) {
      const ran = await nbdpull(...command);
      expect([ran.code, ran.stderr], command.join(" ")).toEqual([code, ""]);
      if (command[0] === "repair") expect(ran.stdout).toContain("the digest file, made again");
      expect([await modesIn(join(repo, DOMAIN)), await modesIn(folder)]).toEqual(before);
    }
    const args = ["--to", repo, "--domain", "web", "--disk", "vda", "--checkpoint", "c", "--offline"];
    const write = await nbdpull("import", join(chain.folder, "image"), ...args);
    expect([write.code, write.stderr]).toEqual([0, expect.stringContaining("open to other users")]);
    expect(await modesIn(folder)).toEqual({
      ".": "700",
      "point.json": "600",
      "vda.digests": "600",
      "vda.qcow2": "600",
    });
    expect(await modeOf(join(repo, DOMAIN))).toBe("700");
    const again = await nbdpull("import", join(chain.folder, "image"), ...args);
    expect([again.code, again.stderr]).toEqual([0, expect.not.stringContaining("open to other users")]);
  });
});

describeUnless(NO_ATTACKER, "a repository with the setgid bit", () => {
  it("is shared with its group, which gets the rights that it has to the folder, and others get none", async () => {
    const repo = chain.repository.path;
    await chown(repo, 0, 34);
    await chmod(repo, 0o2750);
    await writeFile(join(chain.folder, "image"), Buffer.alloc(65_536, 1));
    const args = ["--to", repo, "--domain", "web", "--disk", "vda"];
    expect((await nbdpull("import", join(chain.folder, "image"), ...args)).code).toBe(0);
    expect(await modeOf(join(repo, "web"))).toBe("2750");
    const [id] = (await readdir(join(repo, "web"))).filter((name) => !name.startsWith("."));
    expect(await modesIn(join(repo, "web", id ?? ""))).toEqual({
      ".": "2750",
      "point.json": "640",
      "vda.digests": "640",
      "vda.qcow2": "640",
    });
    expect((await stat(join(repo, "web", id ?? "", "vda.qcow2"))).gid).toBe(34);
  });
});
