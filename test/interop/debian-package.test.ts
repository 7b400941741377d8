/**
 * The Debian package. What takes minutes (xz, lintian, a fresh Debian) is tried with NBDPULL_TEST_DEBIAN=1:
 * it takes root, lintian and debootstrap.
 */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Folder, makeFolder } from "../nbd/servers.js";
import { freshPaths } from "../support/fresh.js";
import { describeWith } from "../support/tools.js";

const root = join(import.meta.dirname, "../..");
const WHOLE = process.env["NBDPULL_TEST_DEBIAN"] === "1";

/** Compressing takes minutes of a processor, which other tests may want as well. */
const SLOWEST = 20 * 60_000;

let folder: Folder;
const fresh = freshPaths();
beforeAll(async () => {
  folder = await makeFolder();
});
afterAll(async () => {
  await folder?.[Symbol.asyncDispose]();
});

/** @returns the package's path */
async function build(into: string, architecture: string, compression: string): Promise<string> {
  const env = {
    SOURCE_DATE_EPOCH: "1764000000",
    NBDPULL_DEB_FOLDER: join(folder.path, into),
    NBDPULL_DEB_COMPRESSION: compression,
    DEBFULLNAME: "Nobody",
    DEBEMAIL: "nobody@debian.org",
  };
  const { stdout } = await execa("bash", ["packaging/build-deb.sh", architecture], { cwd: root, env });
  return stdout;
}

describeWith(["dpkg-deb", "openssl"], "the Debian package", () => {
  let path: string;
  let tree: string;
  beforeAll(async () => {
    path = await build("first", "amd64", "none");
    tree = join(folder.path, "tree");
    await execa("dpkg-deb", ["--extract", path, tree]);
  });

  /** Without another Node, and as good as no environment. */
  async function nbdpull(...args: string[]): Promise<string> {
    const command = [join(tree, "usr/lib/nbdpull/node"), join(tree, "usr/bin/nbdpull"), ...args];
    const env = { PATH: "/nonexistent", NBDPULL_CONFIG: "/dev/null" };
    return (
      await execa("/usr/bin/env", ["-i", ...Object.entries(env).map((pair) => pair.join("=")), ...command])
    ).stdout;
  }

  it("is the same, byte by byte, when it is built again", async () => {
    const again = await build("second", "amd64", "none");
    await execa("cmp", [path, again]);
  });

  it("needs only what C and C++ programs need", async () => {
    const { stdout } = await execa("dpkg-deb", ["--field", path, "Package", "Architecture", "Depends"]);
    expect(stdout).toBe(
      "Package: nbdpull\nArchitecture: amd64\nDepends: libc6 (>= 2.28), libgcc-s1, libstdc++6 (>= 5)",
    );
    const { stdout: elf } = await execa("readelf", [
      "--dynamic",
      "--version-info",
      join(tree, "usr/lib/nbdpull/node"),
    ]);
    const needed = [...elf.matchAll(/\(NEEDED\).*\[(.*)\]/g)].map(([, name = ""]) => name);
    const ofThose = /^(?:lib(?:c|m|dl|pthread)|libgcc_s|libstdc\+\+|ld-linux-x86-64)\.so\.\d$/;
    expect(needed.filter((name) => !ofThose.test(name))).toEqual([]);
    const glibc = [...elf.matchAll(/Name: GLIBC_2\.(\d+)/g)].map(([, minor]) => Number(minor));
    expect(Math.max(...glibc)).toBeLessThanOrEqual(28);
  });

  it("runs by its own Node, with nothing else installed", async () => {
    const script = await readFile(join(tree, "usr/lib/nbdpull/dist/bin/nbdpull.js"), "utf8");
    expect(script).toMatch(/^#!\/usr\/lib\/nbdpull\/node\n/);
    expect(await nbdpull("--version")).toBe(
      JSON.parse(await readFile(join(root, "package.json"), "utf8")).version,
    );
    const repository = fresh("repository");
    expect(await nbdpull("init", repository)).toContain("a new repository");
    expect(await nbdpull("points", repository)).toBe("no restore points yet");
    expect(`${await nbdpull("completion", "bash")}\n`).toBe(
      await readFile(join(tree, "usr/share/bash-completion/completions/nbdpull"), "utf8"),
    );
  });

  it("has units, man pages, completions, licences, and settings that are all comments", async () => {
    const { stdout } = await execa("dpkg-deb", ["--contents", path]);
    const files = stdout.split("\n").map((line) => line.split(/\s+/)[5] ?? "");
    const units = files.filter((file) => file.startsWith("./usr/lib/systemd/system/n"));
    expect(units).toHaveLength(13);
    const { stdout: help } = await execa(process.execPath, [join(root, "dist/bin/nbdpull.js"), "--help"]);
    for (const [, name] of help.matchAll(/^ {2}([a-z]+) \[options\]/gm)) {
      expect(files).toContain(`./usr/share/man/man1/nbdpull-${name}.1.gz`);
    }
    expect(files).toContain("./usr/share/zsh/vendor-completions/_nbdpull");
    expect(files).toContain("./usr/share/fish/vendor_completions.d/nbdpull.fish");
    expect(
      stdout.split("\n").filter((line) => !/^[-dl][r-][w-][x-]r[w-][x-]r.. root\/root /.test(line)),
    ).toEqual([]);
    const copyright = await readFile(join(tree, "usr/share/doc/nbdpull/copyright"), "utf8");
    expect(copyright).toMatch(/^ zod \d/m);
    expect(copyright).toContain("Node.js is licensed for use as follows");
    const { stdout: conffiles } = await execa("dpkg-deb", ["--info", path, "conffiles"]);
    expect(conffiles).toBe("/etc/nbdpull.toml");
    expect(await readFile(join(tree, "etc/nbdpull.toml"), "utf8")).not.toMatch(/^[^#\n]/m);
  });

  it("has settings that make sense when they are no comments any more", async () => {
    const text = await readFile(join(root, "packaging/debian/nbdpull.toml"), "utf8");
    const settings = fresh("settings.toml");
    const repository = fresh("settled");
    const real = text
      .replaceAll(/^#(?=\S)/gm, "")
      .replace("/srv/backups", repository)
      .replace("/var/lib/prometheus/node-exporter", fresh(""));
    await writeFile(settings, real, { mode: 0o600 });
    await nbdpull("init", repository);
    for (const command of ["prune", "verify"]) await nbdpull(command, repository, "--config", settings);
    expect(await readFile(fresh("nbdpull.prom"), "utf8")).toContain("nbdpull_");
  });
});

describe.skipIf(!WHOLE)("the whole Debian package", () => {
  it.each(["amd64", "arm64"])(
    "passes lintian: %s",
    async (architecture) => {
      const path = await build("whole", architecture, "xz");
      const { stdout } = await execa("lintian", ["--fail-on", "error,warning", path]);
      expect(stdout).toBe("");
    },
    SLOWEST,
  );

  it("is installed, run, installed again, removed and purged where nothing else is", async () => {
    const { version } = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as { version: string };
    const path = join(folder.path, "whole", `nbdpull_${version}-1_amd64.deb`);
    const { stdout } = await execa("bash", [join(root, "test/support/in-clean-debian.sh"), path]);
    expect(stdout).toContain("one flipped bit in the newest increment was found");
    expect(stdout).toMatch(/^all done$/m);
  });
});
