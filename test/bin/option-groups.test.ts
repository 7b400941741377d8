/** The headings in the help of commands with many options, which are those of their pages. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it, vi } from "vitest";
import { optionsByHeading } from "../../bin/option-groups.js";
import { loadProgram } from "../../bin/program.js";
import { run } from "../../bin/run.js";

// It is read beside the built program.
vi.mock("../../bin/version.js", () => ({ version: () => "0.0.0" }));

const docs = join(import.meta.dirname, "../../docs");
const pageOf = (command: string): string => readFileSync(join(docs, `cli/${command}.md`), "utf8");
const { commands } = await loadProgram("", run);

it("a command with more than 15 options has them in groups, and no other has", () => {
  for (const command of commands) {
    const groups = optionsByHeading(command);
    if (command.options.length <= 15) expect([...groups.keys()], command.name()).toEqual([""]);
    else {
      expect(groups.size, command.name()).toBeGreaterThan(1);
      // Those of its own come first, and no list is as long as the whole was.
      expect([...groups.keys()][0]).toBe("");
      for (const group of groups.values()) expect(group.length, command.name()).toBeLessThan(16);
    }
  }
});

it("each heading is one of the documentation", () => {
  const pages = [
    readFileSync(join(docs, "cli.md"), "utf8"),
    ...readdirSync(join(docs, "cli")).map((name) => readFileSync(join(docs, "cli", name), "utf8")),
  ].join("\n");
  const written = new Set(
    [...pages.matchAll(/^(?:## (.+)|\*\*([^*]+?)\.?\*\*.*)$/gm)].map(([, of2, bold]) => of2 ?? bold),
  );
  for (const command of commands) {
    for (const heading of optionsByHeading(command).keys()) {
      if (heading !== "") expect(written, command.name()).toContain(heading);
    }
  }
});

it("options that a page has below a heading are below the same one in the help", () => {
  let compared = 0;
  for (const command of commands) {
    const groups = optionsByHeading(command);
    const lists = pageOf(command.name()).matchAll(/^\*\*([^*]+)\*\*\n\n((?: {4}.*\n)+)/gm);
    for (const [, heading = "", list = ""] of lists) {
      const listed = list
        .split("\n")
        .filter((line) => line.startsWith("    --"))
        .flatMap((line) => line.match(/(?<=^ {4}|, )--[a-z-]+/g) ?? []);
      const inHelp = groups.get(heading)?.map(({ long }) => long) ?? [];
      // Some are said in the text of the page.
      expect(inHelp, `${command.name()}: ${heading}`).toEqual(expect.arrayContaining(listed));
      expect(listed.length).toBeGreaterThan(0);
      compared += 1;
    }
  }
  expect(compared).toBeGreaterThan(15);
});
