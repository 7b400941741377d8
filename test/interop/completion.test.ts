import { chmod, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Folder, makeFolder } from "../nbd/servers.js";
import { NBDPULL } from "../support/nbdpull.js";
import { Terminal } from "../support/terminal.js";
import { describeWith } from "../support/tools.js";

const completions = join(NBDPULL, "../../completions");
const POINT = "20261121T152216.139Z";

/** What libvirt says that it has: only one is not made to be run, or to be an option. */
const DOMAINS = ["guest1", "guest$(touch owned)", "guest`touch owned`", "guest;touch owned", "--all", ""];

let folder: Folder;
beforeAll(async () => {
  folder = await makeFolder();
  for (const name of [
    `web/20261120T152216.139Z`,
    `web/${POINT}`,
    "db/20261122T020000.000Z",
    "we$(id)\u202e",
  ]) {
    await mkdir(join(folder.path, "repo", name), { recursive: true });
  }
  await mkdir(join(folder.path, "odd", "--trust-repository"), { recursive: true });
  await mkdir(join(folder.path, "odd", "mail"));
  const virsh = join(folder.path, "bin", "virsh");
  await mkdir(join(folder.path, "bin"));
  await writeFile(virsh, `#!/bin/sh\nprintf '%s\\n' ${DOMAINS.map((name) => `'${name}'`).join(" ")}\n`);
  await chmod(virsh, 0o755);
  await mkdir(join(folder.path, "other-place"));
});
afterAll(async () => {
  await folder?.[Symbol.asyncDispose]();
});

/** What is typed before the key, and what the word is then. */
const CASES: readonly (readonly [typed: string, completed: string])[] = [
  ["nbdpull ba", "backup"],
  ["nbdpull backup --encr", "backup --encrypted"],
  ["nbdpull backup --encrypted r", "backup --encrypted refuse"],
  ["nbdpull backup --digests=s", "backup --digests=sha256"],
  ["nbdpull pull nbd://host/a oth", "pull nbd://host/a other-place"],
  ["nbdpull verify rep", "verify repo"],
  ["nbdpull verify ./repo we", "verify ./repo web"],
  [`nbdpull restore --disk vda ./repo web --at 20261121`, `restore --disk vda ./repo web --at ${POINT}`],
  ["nbdpull diff ./repo db l", "diff ./repo db latest"],
  ["nbdpull completion f", "completion fish"],
  // Others than plain names are not offered, so the word is completed.
  ["nbdpull backup gu", "backup guest1"],
  ["nbdpull verify ./odd ", "verify ./odd mail"],
];
/** With NBDPULL_REPOSITORY, where REPO may be left out. */
const SET: typeof CASES = [
  ["nbdpull points we", "points web"],
  ["nbdpull diff web 20261121", `diff web ${POINT}`],
];

/** Without what a shell puts behind a word: a space, or a slash that the end of the line takes away again. */
function called(lines: readonly string[]): string[] {
  return lines.map((line) => line.replace(/[/ ]+$/, ""));
}

describeWith(["tmux", "bash", "zsh", "fish"], "the completion", () => {
  it.each([
    ["bash", "bash --norc --noprofile", "nbdpull.bash"],
    ["zsh", "zsh -f", "_nbdpull"],
  ])("of %s completes a word at the press of a key", async (shell, start, file) => {
    await using terminal = await Terminal.open(160);
    await terminal.type(`exec ${start}`);
    const load = shell === "zsh" ? "autoload -U compinit && compinit -D -u; " : "";
    await terminal.type(
      `cd '${folder.path}'; PATH='${folder.path}/bin':$PATH; ${load}source '${join(completions, file)}'`,
    );
    await terminal.type(`nbdpull() { echo "called: $*"; }; PS1='$ '; clear; echo loaded`);
    await expect.poll(() => terminal.lines()).toContain("loaded");
    for (const [typed, completed] of CASES) {
      await terminal.type(`${typed}\t`);
      await expect.poll(async () => called(await terminal.lines())).toContain(`called: ${completed}`);
    }
    await terminal.type(`export NBDPULL_REPOSITORY='${join(folder.path, "repo")}'`);
    for (const [typed, completed] of SET) {
      await terminal.type(`${typed}\t`);
      await expect.poll(async () => called(await terminal.lines())).toContain(`called: ${completed}`);
    }
  });

  it("of fish completes a word", async () => {
    const tried = async (typed: string, env = {}): Promise<string> => {
      const script = `source '${join(completions, "nbdpull.fish")}'; complete -C '${typed}'`;
      const path = { PATH: `${join(folder.path, "bin")}:${process.env["PATH"]}` };
      const { stdout } = await execa("fish", ["--no-config", "-c", script], {
        ...{ cwd: folder.path, env: { ...env, ...path } },
      });
      return stdout.replaceAll(/\/?(?:\t.*)?$/gm, "");
    };
    for (const [typed, completed] of CASES) {
      expect([typed, await tried(typed)]).toEqual([typed, completed.split(" ").at(-1)]);
    }
    for (const [typed, completed] of SET) {
      const env = { NBDPULL_REPOSITORY: join(folder.path, "repo") };
      expect([typed, await tried(typed, env)]).toEqual([typed, completed.split(" ").at(-1)]);
    }
  });
});
