/** What `npm pack` would publish. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { beforeAll, describe, expect, it } from "vitest";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

interface Manifest {
  readonly name: string;
  readonly man: readonly string[];
  readonly bin: Readonly<Record<string, string>>;
  readonly repository?: unknown;
}
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as Manifest;

let files: readonly string[];
beforeAll(async () => {
  const args = ["pack", "--dry-run", "--json", "--ignore-scripts"];
  const { stdout } = await execa("npm", args, { cwd: root });
  const [packed] = JSON.parse(stdout) as { files: { path: string }[] }[];
  files = (packed?.files ?? []).map(({ path }) => path);
});

function read(path: string): string {
  return readFileSync(join(root, path), "utf8");
}

/** Whether the package has this file, or a folder of this name. */
function has(path: string): boolean {
  return files.some((file) => file === path || file.startsWith(`${path}/`));
}

describe("the npm package", () => {
  it("has the command, the libraries, man pages, completions, examples and documents", () => {
    const expected = [
      ...["dist/bin/nbdpull.js", "dist/src/nbd/index.d.ts", "dist/src/backup/index.d.ts", "docs/install.md"],
      ...["nbdpull.bash", "_nbdpull", "nbdpull.fish"].map((name) => `dist/completions/${name}`),
      ...readdirSync(join(root, "examples")).flatMap((name) => [
        `examples/${name}`,
        `dist/examples/${name.replace(/\.ts$/, ".js")}`,
      ]),
    ];
    expect(expected.filter((path) => !files.includes(path))).toEqual([]);
    expect(files.filter((path) => /^(?:test|dist\/(?:bench|packaging|deb))\//.test(path))).toEqual([]);
  });

  it("names every man page, which npm installs beside the command", () => {
    const pages = readdirSync(join(root, "dist/man")).map((name) => `dist/man/${name}`);
    expect([...manifest.man].sort()).toEqual(pages.sort());
    expect(pages.filter((path) => !files.includes(path))).toEqual([]);
  });

  it("is called what the documents call it", () => {
    for (const page of ["README.md", "docs/install.md", "docs/nbd-client.md", "examples/read-range.ts"]) {
      expect(read(page), page).toContain(manifest.name);
    }
    const [command = ""] = Object.keys(manifest.bin);
    expect(read("docs/install.md")).toContain(`${command} --version`);
  });

  it("has what its documents link to, but for the tests, which are in the repository alone", () => {
    const pages = files.filter((path) => path.endsWith(".md"));
    expect(pages).toContain("README.md");
    const links = pages.flatMap((page) =>
      [...read(page).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target = ""]) => ({ page, target })),
    );
    const local = links.filter(({ target }) => !/^(?:https?:|mailto:|#)/.test(target));
    expect(local.length).toBeGreaterThan(100);
    const missing = local.filter(({ page, target }) => {
      const path = normalize(join(dirname(page), target.replace(/#.*$/, "")));
      return !path.startsWith("test/") && !has(path.replace(/\/$/, ""));
    });
    expect(missing).toEqual([]);
    expect(read("docs/faults-of-others.md")).toContain(
      "The tests are in the repository, not in the npm package.",
    );
  });

  it("has headings for what its documents link to inside of pages", () => {
    const anchors = (page: string): Set<string> =>
      new Set(
        [...read(page).matchAll(/^#+ (.+)$/gm)].map(([, title = ""]) =>
          title
            .toLowerCase()
            .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
            .replaceAll(" ", "-"),
        ),
      );
    const wrong = files
      .filter((path) => path.endsWith(".md") && !path.startsWith("docs/api/"))
      .flatMap((page) =>
        [...read(page).matchAll(/\]\(([^)\s:]*\.md|)#([^)\s]+)\)/g)].flatMap(([, to = "", anchor = ""]) => {
          const target = to === "" ? page : normalize(join(dirname(page), to));
          return anchors(target).has(anchor) ? [] : [`${page}: ${to}#${anchor}`];
        }),
      );
    expect(wrong).toEqual([]);
  });
});
