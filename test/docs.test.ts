import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { describe, expect, it } from "vitest";
import { blocksOf, isOfCommands, pages, readPage } from "./support/document-blocks.js";
import { nbdpull } from "./support/nbdpull.js";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

function sources(): string {
  const files = ["src", "bin"].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: "utf8" }).map((name) =>
      join(root, folder, name),
    ),
  );
  return files
    .filter((file) => /\.tsx?$/.test(file))
    .map((file) => readFileSync(file, "utf8"))
    .join("\n");
}

function codesIn(text: string, pattern: RegExp): Set<string> {
  return new Set([...text.matchAll(pattern)].map((match) => match[1] ?? ""));
}

describe("the documentation", () => {
  it("describes every error code, and no others", () => {
    const documented = readFileSync(join(root, "docs/errors.md"), "utf8");
    const thrown = codesIn(sources(), /"((?:E|NBD)_[A-Z0-9_]+)"/g);
    expect(thrown.size).toBeGreaterThan(80);
    expect([...thrown].filter((code) => !documented.includes(`\`${code}\``))).toEqual([]);
    const listed = codesIn(documented, /`((?:E|NBD)_[A-Z0-9_]+)`/g);
    // Codes for elements of libvirt's documents are composed when they are thrown.
    expect([...listed].filter((code) => !thrown.has(code) && !code.startsWith("E_BACKUP_XML_"))).toEqual([]);
  });

  it("describes every option of every command", async () => {
    const ofAll = readFileSync(join(root, "docs/cli.md"), "utf8");
    const { stdout } = await nbdpull("--help");
    const commands = [...stdout.matchAll(/^ {2}([a-z]+) \[options\]/gm)].map((match) => match[1] ?? "");
    expect(commands).toContain("attach");
    const known = new Map<string, Set<string>>();
    for (const command of commands) {
      const page = readFileSync(join(root, `docs/cli/${command}.md`), "utf8");
      expect(page.startsWith(`# \`nbdpull ${command}`), command).toBe(true);
      expect(ofAll).toContain(`[\`${command}\`](cli/${command}.md)`);
      const help = await nbdpull(command, "--help");
      const options = codesIn(help.stdout, /^ {2}(--[a-z-]+)/gm);
      expect(
        [...options].filter((option) => !`${page}${ofAll}`.includes(option)),
        command,
      ).toEqual([]);
      known.set(command, options);
    }
    // What a page says in passing is a command, too.
    const said = pages().flatMap((page) => {
      const inBlocks = blocksOf(page)
        .filter(isOfCommands)
        .flatMap(({ lines }) => lines)
        .flatMap((line) => /^(?:[#$] )?nbdpull (.*)/.exec(line)?.[1] ?? []);
      const inText = [...readPage(page).matchAll(/`nbdpull ((?![A-Z])[^`\n]+)`/g)].map(
        ([, line = ""]) => line,
      );
      return [...inBlocks, ...inText].map((line) => ({ page, line }));
    });
    expect(said.length).toBeGreaterThan(80);
    for (const { page, line } of said) {
      const [command = ""] = line.split(" ");
      if (command.startsWith("-")) continue;
      const options = known.get(command);
      expect(options, `${page}: nbdpull ${line}`).toBeDefined();
      for (const [option] of line.matchAll(/(?<= )--[a-z-]+(?!…)/g)) {
        expect([...(options ?? []), "--help"], `${page}: nbdpull ${line}`).toContain(option);
      }
    }
  });

  it("names the files of this version, and tells of no version as a past one that is not past", () => {
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
    const install = readFileSync(join(root, "docs/install.md"), "utf8");
    const files = codesIn(install, /(?:nbdpull_|nbd-client-ts-)(\d+\.\d+\.\d+)(?:-|\.)/g);
    expect([...files]).toEqual([version]);
    expect(readFileSync(join(root, "CHANGELOG.md"), "utf8")).toMatch(
      new RegExp(`^# Changelog\n\n## ${version.replaceAll(".", "\\.")}\\b`),
    );
    const told = codesIn(`${sources()}${pages().map(readPage).join("")}`, /\bversion (0\.\d+)\b/gi);
    const [, minor = ""] = version.split(".");
    expect(told.size).toBeGreaterThan(0);
    expect([...told].filter((past) => Number(past.split(".")[1]) >= Number(minor))).toEqual([]);
  });

  it("says of the data path in which order its files are read, and leaves none out", () => {
    const folder = join(root, "src/backup/pull");
    const [guide = ""] = readFileSync(join(folder, "pull.ts"), "utf8").split("*/");
    expect(readdirSync(folder).filter((name) => !guide.includes(name))).toEqual([]);
  });

  it("names existing tests in every row of the faults of others", () => {
    const page = readFileSync(join(root, "docs/faults-of-others.md"), "utf8");
    const rows = page.split("\n").filter((line) => /^\| (?!fault |what )/.test(line));
    expect(rows.length).toBeGreaterThan(20);
    for (const row of rows) {
      const named = [...row.matchAll(/\]\(\.\.\/(test\/[^)]+)\): `([^`]+)`/g)];
      expect(named, row).not.toEqual([]);
      for (const [, file = "", title = ""] of named) {
        expect(readFileSync(join(root, file), "utf8")).toContain(`"${title}"`);
      }
    }
  });

  it("has an API reference that matches the docstrings", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-docs-"));
    try {
      const typedoc = join(root, "node_modules", "typedoc", "bin", "typedoc");
      await execa(process.execPath, [typedoc, "--out", folder], { cwd: root });
      for (const name of ["nbd.md", "backup.md"]) {
        const fresh = await readFile(join(folder, name), "utf8");
        expect(
          fresh === (await readFile(join(root, "docs/api", name), "utf8")),
          `${name}: npm run docs`,
        ).toBe(true);
      }
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
