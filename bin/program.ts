/**
 * What there is to call: every command with its arguments, options and help. The command line runs it; man
 * pages and the completion of shells are made from it.
 */
import { type Command, Help } from "commander";
import { EXIT_MEANINGS } from "./exit-codes.js";
import { withTalk } from "./options.js";
import type { Run } from "./run.js";
import { UsageCommand } from "./usage-errors.js";
import { version } from "./version.js";

/** In the order of the help text. */
const COMMANDS: Readonly<Record<string, () => Promise<(program: Command, run: Run) => void>>> = {
  pull: async () => (await import("./usage/pull.js")).addPull,
  map: async () => (await import("./usage/map.js")).addMap,
  info: async () => (await import("./usage/info.js")).addInfo,
  init: async () => (await import("./usage/init.js")).addInit,
  backup: async () => (await import("./usage/backup.js")).addBackup,
  run: async () => (await import("./usage/run.js")).addRun,
  attach: async () => (await import("./usage/attach.js")).addAttach,
  import: async () => (await import("./usage/import.js")).addImport,
  points: async () => (await import("./usage/points.js")).addPoints,
  report: async () => (await import("./usage/report.js")).addReport,
  stats: async () => (await import("./usage/stats.js")).addStats,
  diff: async () => (await import("./usage/diff.js")).addDiff,
  restore: async () => (await import("./usage/restore.js")).addRestore,
  verify: async () => (await import("./usage/verify.js")).addVerify,
  repair: async () => (await import("./usage/repair.js")).addRepair,
  copy: async () => (await import("./usage/copy.js")).addCopy,
  prune: async () => (await import("./usage/prune.js")).addPrune,
  forget: async () => (await import("./usage/forget.js")).addForget,
  serve: async () => (await import("./usage/serve.js")).addServe,
  mount: async () => (await import("./usage/mount.js")).addMount,
  unmount: async () => (await import("./usage/unmount.js")).addUnmount,
  rehearse: async () => (await import("./usage/rehearse.js")).addRehearse,
  doctor: async () => (await import("./usage/doctor.js")).addDoctor,
  demo: async () => (await import("./usage/demo.js")).addDemo,
  completion: async () => (await import("./usage/completion.js")).addCompletion,
};

/** They do without the other commands. Everything else (help, a misspelled command) is about all of them. */
function isAlone(word: string): boolean {
  if (word === "completion") return false;
  return Object.hasOwn(COMMANDS, word) || word === "--version" || word === "-V";
}

/**
 * Loading every command takes longer than many an incremental backup, so only the one that is called is
 * loaded.
 * @param called the first word; anything that is no command loads all of them
 * @param run wraps the work of commands
 */
export async function loadProgram(called: string, run: Run): Promise<Command> {
  const program = new UsageCommand("nbdpull")
    .description(
      "Pull-mode backups over NBD: full and incremental images of running virtual machines, and any point back.",
    )
    .version(version())
    .addHelpText("after", `\n${exitCodes()}`)
    .showHelpAfterError("(nbdpull --help lists the commands)");
  for (const [name, load] of Object.entries(COMMANDS)) {
    if (name === called || !isAlone(called)) (await load())(program, run);
  }
  for (const command of program.commands) {
    withTalk(command)
      .showHelpAfterError(`(nbdpull ${command.name()} --help tells more, and has examples)`)
      .configureHelp({
        optionDescription: (option) =>
          `${new Help().optionDescription(option)}${option.mandatory ? " (required)" : ""}`,
      });
  }
  return program;
}

function exitCodes(): string {
  const texts = EXIT_MEANINGS.map(([codes, meaning]) => `${codes} ${meaning}`);
  const second = texts.findIndex((text) => text.startsWith("4 "));
  return `Exit codes: ${texts.slice(0, second).join("; ")};\n${texts.slice(second).join("; ")}.`;
}
