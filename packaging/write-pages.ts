/** Writes the man pages and the completions of shells into a folder: `dist/man`, `dist/completions`. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bashCompletion } from "../bin/completion/bash.js";
import { fishCompletion } from "../bin/completion/fish.js";
import { wordsOf } from "../bin/completion/words.js";
import { zshCompletion } from "../bin/completion/zsh.js";
import { loadProgram } from "../bin/program.js";
import { run } from "../bin/run.js";
import { version } from "../bin/version.js";
import { manPages } from "./man-page.js";

const [target = "dist"] = process.argv.slice(2);
const seconds = process.env["SOURCE_DATE_EPOCH"];
const date = seconds === undefined ? new Date() : new Date(Number(seconds) * 1000);
const program = await loadProgram("", run);
const documentOf = (command: string | undefined): string =>
  readFileSync(command === undefined ? "docs/cli.md" : `docs/cli/${command}.md`, "utf8");
const pages = manPages(program, { version: version(), date: date.toISOString().slice(0, 10), documentOf });
const words = wordsOf(program);
const completions = [
  { name: "nbdpull.bash", text: bashCompletion(words) },
  { name: "_nbdpull", text: zshCompletion(words) },
  { name: "nbdpull.fish", text: fishCompletion(words) },
];
for (const [folder, files] of Object.entries({ man: pages, completions })) {
  mkdirSync(join(target, folder), { recursive: true });
  for (const { name, text } of files) writeFileSync(join(target, folder, name), text);
}
