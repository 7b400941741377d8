/**
 * Each command of a page is run by a test, or says in a comment why it can't be; each link leads somewhere.
 */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { blocksOf, isOfCommands, pages, readPage, stepsOf } from "./support/document-blocks.js";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/** The tests that run all commands of a page. */
const RUN_BY: Readonly<Record<string, string>> = {
  "README.md": "test/libvirt/documents.test.ts",
  "docs/by-hand.md": "test/libvirt/restore-live.test.ts",
  "docs/cli/pull.md": "test/interop/pull-page.test.ts",
  "docs/install.md": "test/libvirt/documents.test.ts",
  "docs/operations.md": "test/libvirt/documents.test.ts",
  "docs/recipes.md": "test/libvirt/documents.test.ts",
  "docs/repository-format.md": "test/libvirt/documents.test.ts",
  "docs/stores.md": "test/interop/store-reading.test.ts",
};

/** What a heading is called in a link. */
function anchorOf(heading: string): string {
  const words = heading.toLowerCase().replaceAll(/[^\p{L}\p{N} _-]/gu, "");
  return words.trim().replaceAll(" ", "-");
}

function anchors(page: string): string[] {
  return [...readPage(page).matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) => anchorOf(heading));
}

describe("the pages", () => {
  it("have no command that neither a test runs nor a comment explains", () => {
    const commands = pages().flatMap(blocksOf).filter(isOfCommands);
    expect(commands.length).toBeGreaterThan(40);
    for (const block of commands) {
      const where = `${block.page}:${block.line}`;
      expect(stepsOf(block).length, where).toBeGreaterThan(0);
      if (block.notRun === undefined) {
        expect(Object.keys(RUN_BY), `${where}: run it, or say why not: <!-- not run: REASON -->`).toContain(
          block.page,
        );
      } else {
        expect(block.notRun.split(" ").length, `${where}: a reason has some words`).toBeGreaterThan(3);
        for (const [test] of block.notRun.matchAll(/test\/\S+?\.test\.ts/g)) {
          expect(existsSync(join(root, test)), `${where}: ${test}`).toBe(true);
        }
      }
    }
    for (const [page, test] of Object.entries(RUN_BY)) {
      expect(readFileSync(join(root, test), "utf8"), test).toContain(page);
    }
  });

  it("show programs that are compiled with the examples, and run by their test", () => {
    const shown = pages().flatMap((page) =>
      [...readPage(page).matchAll(/^(?:<!-- file: (\S+) -->\n)?```ts\n([\s\S]*?)^```$/gm)].map(
        ([, file, code]) => ({
          page,
          file,
          code,
        }),
      ),
    );
    expect(shown.length).toBeGreaterThan(2);
    const run = readFileSync(join(root, "test/examples.test.ts"), "utf8");
    for (const { page, file, code } of shown) {
      expect(file, `${page}: which file is it? <!-- file: examples/NAME.ts -->`).toMatch(
        /^examples\/[\w-]+\.ts$/,
      );
      expect(readFileSync(join(root, file ?? ""), "utf8") === code, `${page} shows ${file} as it is`).toBe(
        true,
      );
      expect(run).toContain(`"${/([\w-]+)\.ts$/.exec(file ?? "")?.[1]}"`);
    }
  });

  it("have no link that leads nowhere", () => {
    for (const page of pages()) {
      const text = readPage(page).replaceAll(/^ *```[\s\S]*?^ *```$/gm, "");
      for (const [, target = ""] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^https?:/.test(target)) continue;
        const [path = "", anchor] = target.split("#");
        const file = path === "" ? page : normalize(join(dirname(page), path));
        expect(existsSync(join(root, file)), `${page}: ${target}`).toBe(true);
        if (anchor !== undefined) expect(anchors(file), `${page}: ${target}`).toContain(anchor);
      }
    }
  });
});
