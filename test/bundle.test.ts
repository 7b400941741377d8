import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { describe, expect, it } from "vitest";
import { makeFolder } from "./nbd/servers.js";
import { MemoryChain } from "./support/memory-chain.js";

const bundle = join(dirname(fileURLToPath(import.meta.url)), "../dist/bin");
/** Prints which of Node's own modules a program has loaded. */
const PRINT = "process.once('exit', () => process.stderr.write(process.moduleLoadList.join('\\n') + '\\n'))";
const LOADED = `data:text/javascript,${encodeURIComponent(PRINT)}`;

/**
 * Runs a copy of the bundle that lacks the one file in which `what` is, as if it were replaced meanwhile, and
 * returns what goes to standard error.
 */
function bundleWithout(folder: string, what: RegExp): (...args: string[]) => Promise<string> {
  const copy = join(folder, "dist/bin");
  cpSync(bundle, copy, { recursive: true });
  cpSync(join(bundle, "../../package.json"), join(folder, "package.json"));
  const lost = readdirSync(copy).filter(
    (name) => name.endsWith(".js") && what.test(readFileSync(join(copy, name), "utf8")),
  );
  expect(lost).toHaveLength(1);
  rmSync(join(copy, lost[0] ?? ""));
  return async (...args) => {
    const { stderr } = await execa(process.execPath, [join(copy, "nbdpull.js"), ...args], { reject: false });
    return stderr;
  };
}

/** A backup of domains that no libvirt has, because nothing listens there. */
function backupOf(folder: string, ...names: string[]): string[] {
  const libvirt = ["--connect", `qemu:///session?socket=${join(folder, "none")}`];
  return [
    "backup",
    ...names.map((name) => `bundle-${name}`),
    "--create",
    "--to",
    join(folder, "repo"),
    ...libvirt,
  ];
}

describe("the command's bundle", () => {
  it("imports only its own files and Node, so that it works without node_modules", () => {
    const scripts = readdirSync(bundle).filter((name) => name.endsWith(".js"));
    const loaded = scripts.flatMap((name) => {
      const script = readFileSync(join(bundle, name), "utf8");
      return [
        ...script.matchAll(/^(?:import|export) (?:.* from )?"([^"]+)";?$/gm),
        ...script.matchAll(/\bimport\("([^"]+)"\)/g),
        ...script.matchAll(/\bgetBuiltinModule\("([^"]+)"\)/g),
      ].map(([, from]) => from ?? "");
    });
    expect(loaded).toContain("node:net");
    expect(loaded.filter((from) => !/^(?:node:|\.\/)/.test(from))).toEqual([]);
  });

  it("takes Node's modules without their ES module faces, which load all that they could ever need", () => {
    for (const name of readdirSync(bundle).filter((name) => name.endsWith(".js"))) {
      expect(readFileSync(join(bundle, name), "utf8"), name).not.toMatch(/^import .*"node:/m);
    }
  });

  it("loads for a command's help nothing that only its work needs", async () => {
    for (const name of ["pull", "backup", "restore"]) {
      const args = ["--import", LOADED, join(bundle, "nbdpull.js"), name, "--help"];
      const { stderr } = await execa(process.execPath, args);
      expect(stderr).toContain("NativeModule path");
      // Not net: the pipe that the help goes to is one of its sockets.
      expect(stderr.match(/^NativeModule (?:tls|child_process|crypto|worker_threads|zlib)$/gm)).toBeNull();
    }
  });

  it("loads for a pull into a raw image neither cryptography nor compression nor threads", async () => {
    await using chain = await MemoryChain.start(65_536);
    await using folder = await makeFolder();
    const pull = ["pull", chain.uri, join(folder.path, "disk.raw"), "--quiet"];
    const args = ["--import", LOADED, join(bundle, "nbdpull.js"), ...pull];
    const { stderr } = await execa(process.execPath, args);
    expect(stderr).toContain("NativeModule net");
    expect(stderr.match(/^NativeModule (?:tls|child_process|crypto|worker_threads|zlib)$/gm)).toBeNull();
  });

  it("keeps what a command loads in few files, and other commands' work out of them", () => {
    const read = (name: string): string => readFileSync(join(bundle, name), "utf8");
    const names = readdirSync(bundle).filter((name) => name.endsWith(".js"));
    const loaded = (name: string, all = new Set<string>()): Set<string> => {
      if (all.has(name)) return all;
      all.add(name);
      for (const [, from = ""] of read(name).matchAll(/^(?:import|export) (?:.* from )?"\.\/([^"]+)";?$/gm)) {
        loaded(from, all);
      }
      return all;
    };
    const having = (files: Iterable<string>, what: RegExp): string[] =>
      [...files].filter((name) => what.test(read(name)));
    const store = /\bS3Client = class\b/;
    const programs = /\bexeca = /;
    const mounting = /\basync function runMount\(|\bclass NbdServer\b/;
    for (const foreign of [store, programs, mounting]) expect(having(names, foreign)).not.toEqual([]);
    const seen = new Set<string>();
    for (const what of ["Backup", "Points", "Pull", "Restore", "Verify"]) {
      const own = having(names, new RegExp(`\\basync function run${what}\\(`));
      expect(own).toHaveLength(1);
      const files = loaded(own[0] ?? "");
      // Fewer would mean that this test no longer knows how they are imported.
      expect(files.size, what).toBeGreaterThan(5);
      expect(files.size, what).toBeLessThan(40);
      for (const foreign of [store, programs, mounting]) expect(having(files, foreign), what).toEqual([]);
      const later = /\bimport\("\.\/((execa|display)-[^"]+)"\)/g;
      for (const [, file = "", kind = ""] of [...files].flatMap((name) => [...read(name).matchAll(later)])) {
        seen.add(kind);
        const foreign = kind === "display" ? [store, programs, mounting] : [store, mounting];
        for (const each of foreign) expect(having(loaded(file), each), `${what}: ${file}`).toEqual([]);
      }
    }
    expect([...seen].sort()).toEqual(["display", "execa"]);
    for (const thread of names.filter((name) => name.endsWith("-worker.js"))) {
      expect(
        [...loaded(thread)].filter((name) => /\bclass Command\b/.test(read(name))),
        thread,
      ).toEqual([]);
    }
    const backup = names.find((name) => /\basync function runBackup\(/.test(read(name))) ?? "";
    const text = [...loaded(backup)].map(read).join("\n");
    // It is loaded while libvirt begins the job, and only if the domain runs.
    expect(text).not.toMatch(/\basync function (?:takePoint|backUpStopped)\(/);
  });

  it("loads both ways to back up before several domains, of which the last may be hours away", async () => {
    for (const what of [/\basync function backUpStopped\(/, /\bclass Qcow2Writer\b/, /\bexeca = /]) {
      await using folder = await makeFolder();
      const run = bundleWithout(folder.path, what);
      expect(await run(...backupOf(folder.path, "a"))).not.toContain("ERR_MODULE_NOT_FOUND");
      expect(await run(...backupOf(folder.path, "a", "b"))).toContain("ERR_MODULE_NOT_FOUND");
    }
  });

  it("tells each fault where what tells of hints can't be loaded, as when it is replaced meanwhile", async () => {
    await using folder = await makeFolder();
    const run = bundleWithout(folder.path, /\bfunction hintFor\(/);
    expect(await run("points", join(folder.path, "nowhere"))).toMatch(/no repository/);
    const config = join(folder.path, "nbdpull.toml");
    writeFileSync(config, "fsnyc = true\n", { mode: 0o600 });
    expect(await run("points", folder.path, "--config", config)).toMatch(/there is no setting fsnyc/);
    const stderr = await run(...backupOf(folder.path, "a", "b"));
    for (const name of ["a", "b"]) expect(stderr).toMatch(new RegExp(`E_LIBVIRT: bundle-${name}:`));
    expect(stderr).not.toContain("ERR_MODULE_NOT_FOUND");
  });

  it("does the night's backup though what writes its report can't be loaded", async () => {
    await using folder = await makeFolder();
    const run = bundleWithout(folder.path, /\bclass ReportFile\b/);
    await run("init", join(folder.path, "repo"));
    const [, ...rest] = backupOf(folder.path, "a").filter((word) => word !== "--create");
    const stderr = await run("run", ...rest, "--report", join(folder.path, "report.html"));
    expect(stderr).toMatch(/ERR_MODULE_NOT_FOUND: report:/);
    expect(stderr).toMatch(/E_LIBVIRT: backup:/);
  });

  it("looks for a report's file without the page, its styles and charts", () => {
    const read = (name: string): string => readFileSync(join(bundle, name), "utf8");
    const names = readdirSync(bundle).filter((name) => name.endsWith(".js"));
    const [name = "", ...others] = names.filter((each) => /\bclass ReportFile\b/.test(read(each)));
    expect(others).toEqual([]);
    const from = [...read(name).matchAll(/^import (?:.* from )?"\.\/([^"]+)";?$/gm)].map(
      ([, file = ""]) => file,
    );
    expect(from.length).toBeGreaterThan(0);
    expect(names.filter((each) => /\bfunction reportPage\(/.test(read(each)))).toHaveLength(1);
    expect(from.filter((each) => /\bfunction reportPage\(/.test(read(each)))).toEqual([]);
  });

  it("has the licences of its dependencies", () => {
    const licences = readFileSync(join(bundle, "THIRD-PARTY-LICENSES.txt"), "utf8");
    for (const name of ["commander", "zod", "execa", "fast-xml-parser", "xxhash-wasm"]) {
      expect(licences).toMatch(new RegExp(`^${name} \\d.* \\((?:MIT|ISC)\\)\\n\\n\\S`, "m"));
    }
  });
});
