import { readdirSync, readFileSync } from "node:fs";
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
      expect(files.size, what).toBeGreaterThan(10);
      expect(files.size, what).toBeLessThan(60);
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

  it("has the licences of its dependencies", () => {
    const licences = readFileSync(join(bundle, "THIRD-PARTY-LICENSES.txt"), "utf8");
    for (const name of ["commander", "zod", "execa", "fast-xml-parser", "xxhash-wasm"]) {
      expect(licences).toMatch(new RegExp(`^${name} \\d.* \\((?:MIT|ISC)\\)\\n\\n\\S`, "m"));
    }
  });
});
