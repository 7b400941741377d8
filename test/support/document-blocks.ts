/**
 * The code blocks of a page, and which of them are commands that a test has to run.
 *
 * A comment in front of a block, which readers don't see, says how:
 *
 *     <!-- not run: REASON -->                  it can't be run in a test; a test file in REASON has to exist
 *     <!-- run: background -->                  it goes on until the page has ended
 *     <!-- run: when others have ended -->      first, what goes on in the background is ended
 *     <!-- run: exit 3 -->                      the last command ends with this exit code
 *     <!-- run: PREPARATION -->                 the test does this first; the test's file says what it is
 */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..");

export interface Block {
  readonly page: string;
  /** Of the first line of code, from 1. */
  readonly line: number;
  /** The word behind the fence; empty for an indented block. */
  readonly language: string;
  readonly lines: readonly string[];
  /** The words of a comment that begins with `run:`, at commas. */
  readonly run: readonly string[];
  /** Why it can't be run. */
  readonly notRun: string | undefined;
}

/** Programs whose name at the beginning of a line makes a block one of commands. */
const PROGRAMS = [
  ...["nbdpull", "virsh", "virt-install", "qemu-img", "qemu-nbd", "qemu-io", "qemu-system-x86_64", "nbdinfo"],
  ...["nbdcopy", "nbdfuse", "guestfish", "debugfs", "mount", "umount", "fusermount3", "losetup"],
  ...[
    "cp",
    "mv",
    "rm",
    "mkdir",
    "rmdir",
    "install",
    "chown",
    "chmod",
    "ln",
    "kill",
    "cd",
    "cat",
    "ls",
    "sed",
    "for",
  ],
  ...[
    "systemctl",
    "systemd-run",
    "journalctl",
    "apt",
    "apt-get",
    "dpkg",
    "npm",
    "npx",
    "node",
    "git",
    "bash",
  ],
  ...[
    "rclone",
    "aws",
    "ssh",
    "scp",
    "rsync",
    "sudo",
    "export",
    "sha256sum",
    "blkdiscard",
    "curl",
    "man",
    "source",
  ],
];
const COMMAND = new RegExp(`^(?:[#$] )?(?:[A-Z_]+=\\S* )*(?:${PROGRAMS.join("|")})(?: |$)`);

/** All pages that people read: README and docs, without what is generated. */
export function pages(): string[] {
  const folders = ["docs", "docs/cli"];
  const docs = folders.flatMap((folder) => {
    const names = readdirSync(join(ROOT, folder)).filter((name) => name.endsWith(".md"));
    return names.sort().map((name) => `${folder}/${name}`);
  });
  return ["README.md", ...docs];
}

export function readPage(page: string): string {
  return readFileSync(join(ROOT, page), "utf8");
}

export function blocksOf(page: string): Block[] {
  const blocks: Block[] = [];
  const lines = readPage(page).split("\n");
  let comment = "";
  const add = (at: number, language: string, code: readonly string[]): void => {
    const [, kind, said = ""] = /^<!-- (run|not run): (.*) -->$/.exec(comment) ?? [];
    const run = kind === "run" ? said.split(",").map((word) => word.trim()) : [];
    blocks.push({
      page,
      line: at + 1,
      language,
      lines: code,
      run,
      notRun: kind === "not run" ? said : undefined,
    });
    comment = "";
  };
  for (let at = 0; at < lines.length; at += 1) {
    const line = lines[at] ?? "";
    const fence = /^( *)```(\w*)/.exec(line);
    if (fence) {
      const end = lines.findIndex((each, index) => index > at && /^ *```$/.test(each));
      if (end === -1) throw new Error(`${page}:${at + 1}: a block without end`);
      const indent = fence[1]?.length ?? 0;
      add(
        at + 1,
        fence[2] ?? "",
        lines.slice(at + 1, end).map((each) => each.slice(indent)),
      );
      at = end;
    } else if (/^ {4}\S/.test(line) && lines[at - 1] === "") {
      let end = at;
      while (/^ {4}|^$/.test(lines[end] ?? "x")) end += 1;
      add(
        at,
        "",
        lines
          .slice(at, end)
          .join("\n")
          .trimEnd()
          .split("\n")
          .map((each) => each.slice(4)),
      );
      at = end - 1;
    } else if (line !== "") comment = line.trim();
  }
  return blocks;
}

/** Whether a block has to be run, or to say why it can't be. */
export function isOfCommands({ language, lines }: Block): boolean {
  if (language === "sh" || language === "console") return true;
  return language === "" && lines.some((line) => COMMAND.test(line));
}

export interface Step {
  readonly command: string;
  /** What the page says that it prints; undefined if it says nothing. */
  readonly output: readonly string[] | undefined;
}

/**
 * The commands of a block: a script as a whole, or those behind the prompts `#` and `$` with what they print.
 */
export function stepsOf({ page, line: at, language, lines }: Block): Step[] {
  const prompted = language === "console" || (language === "" && lines.some((line) => /^[#$] /.test(line)));
  if (!prompted) return [{ command: lines.join("\n"), output: undefined }];
  const steps: { command: string; output: string[] }[] = [];
  let goesOn = false;
  for (const line of lines) {
    const last = steps.at(-1);
    if (goesOn && last) last.command += `\n${line}`;
    else if (/^[#$] /.test(line)) steps.push({ command: line.slice(2), output: [] });
    else last?.output.push(line);
    goesOn = (goesOn || /^[#$] /.test(line)) && line.endsWith("\\");
  }
  if (steps.length === 0) throw new Error(`${page}:${at}: no line begins with a prompt`);
  return steps.map(({ command, output }) => ({ command, output: output.length === 0 ? undefined : output }));
}

/** Without what differs from run to run: ids, numbers with their units, and the width of gaps. */
export function withoutNumbers(text: string): string {
  return text
    .replaceAll(/\b\d{8}T\d{6}(?:\.\d{3})?Z\b/g, "ID")
    .replaceAll(/\b[0-9a-f]{8,}\b/g, "HEX")
    .replaceAll(/(?<![A-Za-z])\d[\d.,:-]*(?: ?(?:B|KiB|MiB|GiB|TiB|ms|s|min|h|d|%)(?![A-Za-z]))?/g, "N")
    .replaceAll(/ +/g, " ")
    .trim();
}
