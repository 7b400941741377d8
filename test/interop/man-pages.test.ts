import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { beforeAll, expect, it } from "vitest";
import { NBDPULL, nbdpull } from "../support/nbdpull.js";
import { describeWith } from "../support/tools.js";

const folder = join(NBDPULL, "../../man");
const completions = join(NBDPULL, "../../completions");

/** By the names of the commands. */
let helps: ReadonlyMap<string, string>;
beforeAll(async () => {
  const { stdout } = await nbdpull("--help");
  const names = [...stdout.matchAll(/^ {2}([a-z]+) (?:\[options\]|<)/gm)].map(([, name = ""]) => name);
  expect(names).toContain("completion");
  helps = new Map(
    await Promise.all(names.map(async (name) => [name, (await nbdpull(name, "--help")).stdout] as const)),
  );
});

function optionsIn(text: string, indent: RegExp): string[] {
  return [...text.matchAll(indent)].map(([, option = ""]) => option);
}

describeWith(["man", "mandoc"], "the man pages", () => {
  it("are there for each command, and no other", () => {
    const expected = ["nbdpull.1", ...[...helps.keys()].map((name) => `nbdpull-${name}.1`)];
    expect(readdirSync(folder).sort()).toEqual(expected.sort());
  });

  it("name every option, argument and example that the help of the command has", async () => {
    for (const [name, help] of helps) {
      const { stdout: page } = await execa("mandoc", [
        "-T",
        "ascii",
        "-O",
        "width=200",
        join(folder, `nbdpull-${name}.1`),
      ]);
      const plain = page.replaceAll(/.[\b]/g, "");
      const [, options = ""] = /^OPTIONS$([\s\S]*?)^[A-Z]/m.exec(plain) ?? [];
      expect(optionsIn(options, /^ {5,7}(?:-\w, )?(--[a-z-]+)/gm).sort()).toEqual(
        optionsIn(help, /^ {2}(?:-\w, )?(--[a-z-]+)/gm).sort(),
      );
      const headings = optionsIn(help, /^(\S.*):$/gm).filter(
        (each) => !/^(?:Arguments|Options|Examples?)$/.test(each),
      );
      expect(optionsIn(options, /^ {3}(\S.*)$/gm)).toEqual(headings);
      const [, usage = ""] = /^Usage: nbdpull [a-z]+ \[options\](.*)/m.exec(help) ?? [];
      const [, examples = ""] = help.split(/^Examples?:\n/m);
      for (const word of usage.match(/[a-z]+/g) ?? []) expect(plain).toContain(word.toUpperCase());
      expect(examples).toContain(`nbdpull ${name}`);
      for (const example of examples.trim().split("\n")) expect(plain).toContain(example.trim());
      expect(plain).toMatch(/^EXIT STATUS$/m);
      expect(plain).toMatch(/^ENVIRONMENT$/m);
    }
  });

  it("are in order for man and for mandoc", async () => {
    const paths = readdirSync(folder).map((name) => join(folder, name));
    const { stdout } = await execa("mandoc", ["-T", "lint", "-W", "warning", ...paths], { reject: false });
    expect(stdout).toBe("");
    const { stderr } = await execa("man", ["--warnings", "-l", ...paths], {
      env: { MANPAGER: "cat", LC_ALL: "C.UTF-8" },
    });
    expect(stderr).toBe("");
    const { stdout: known } = await execa("lexgrog", paths);
    expect(known.split("\n")).toHaveLength(paths.length);
  });
});

it("the completions know every option of every command", () => {
  const bash = readFileSync(join(completions, "nbdpull.bash"), "utf8");
  const zsh = readFileSync(join(completions, "_nbdpull"), "utf8");
  const fish = readFileSync(join(completions, "nbdpull.fish"), "utf8");
  for (const [name, help] of helps) {
    const options = optionsIn(help, /^ {2}(?:-\w, )?(--[a-z-]+)/gm);
    const [, ofBash = ""] = new RegExp(`^ {4}${name}\\)\\n *options='([^']*)'`, "m").exec(bash) ?? [];
    expect(ofBash.split(" ").filter((word) => word.startsWith("--"))).toEqual(options);
    const [, ofZsh = ""] = new RegExp(`^ {4}${name}\\)\\n([\\s\\S]*?)^ {6};;`, "m").exec(zsh) ?? [];
    expect([...new Set(optionsIn(ofZsh, /^ {8}'[^-]*(--[a-z-]+)/gm))]).toEqual(options);
    const lines = fish.split("\n").filter((line) => line.includes(`'__nbdpull_is ${name}'`));
    expect(lines.map((line) => `--${/ -l (\S+)/.exec(line)?.[1]}`)).toEqual(options);
  }
});
