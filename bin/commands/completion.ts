import type { Command } from "commander";
import { bashCompletion } from "../completion/bash.js";
import { fishCompletion } from "../completion/fish.js";
import type { Shell } from "../completion/shells.js";
import { type CommandWords, wordsOf } from "../completion/words.js";
import { zshCompletion } from "../completion/zsh.js";
import type { Context } from "../run.js";

const SCRIPTS: Readonly<Record<Shell, (commands: readonly CommandWords[]) => string>> = {
  bash: bashCompletion,
  zsh: zshCompletion,
  fish: fishCompletion,
};

/** @param program with all commands */
export async function runCompletion({ output }: Context, program: Command, shell: Shell): Promise<void> {
  const script = SCRIPTS[shell](wordsOf(program));
  output.result({ shell, script }, script.trimEnd().split("\n"));
}
