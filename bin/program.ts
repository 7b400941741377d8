/**
 * What there is to call: every command with its arguments, options and help. The command line runs it; man
 * pages and the completion of shells are made from it.
 */
import { type Command, Help } from "commander";
import { EXIT_MEANINGS } from "./exit-codes.js";
import { ungroupFew } from "./option-groups.js";
import { withTalk } from "./options.js";
import type { Run } from "./run.js";
import { UsageCommand } from "./usage-errors.js";
import { version } from "./version.js";

type Load = () => Promise<(program: Command, run: Run) => void>;

/** In the groups and the order of the help text, which are those of docs/cli.md. */
const GROUPS: Readonly<Record<string, Readonly<Record<string, Load>>>> = {
  "Taking points": {
    backup: async () => (await import("./usage/backup.js")).addBackup,
    run: async () => (await import("./usage/run.js")).addRun,
    attach: async () => (await import("./usage/attach.js")).addAttach,
    import: async () => (await import("./usage/import.js")).addImport,
    copy: async () => (await import("./usage/copy.js")).addCopy,
  },
  "Looking at them": {
    points: async () => (await import("./usage/points.js")).addPoints,
    report: async () => (await import("./usage/report.js")).addReport,
    stats: async () => (await import("./usage/stats.js")).addStats,
    diff: async () => (await import("./usage/diff.js")).addDiff,
    verify: async () => (await import("./usage/verify.js")).addVerify,
  },
  "Getting data back": {
    restore: async () => (await import("./usage/restore.js")).addRestore,
    mount: async () => (await import("./usage/mount.js")).addMount,
    unmount: async () => (await import("./usage/unmount.js")).addUnmount,
    serve: async () => (await import("./usage/serve.js")).addServe,
    rehearse: async () => (await import("./usage/rehearse.js")).addRehearse,
  },
  "Looking after a repository": {
    init: async () => (await import("./usage/init.js")).addInit,
    doctor: async () => (await import("./usage/doctor.js")).addDoctor,
    repair: async () => (await import("./usage/repair.js")).addRepair,
    prune: async () => (await import("./usage/prune.js")).addPrune,
    forget: async () => (await import("./usage/forget.js")).addForget,
  },
  "NBD exports": {
    info: async () => (await import("./usage/info.js")).addInfo,
    map: async () => (await import("./usage/map.js")).addMap,
    pull: async () => (await import("./usage/pull.js")).addPull,
  },
  "The program": {
    completion: async () => (await import("./usage/completion.js")).addCompletion,
    demo: async () => (await import("./usage/demo.js")).addDemo,
  },
};
const NAMES: readonly string[] = Object.values(GROUPS).flatMap(Object.keys);

/** They do without the other commands. Everything else (help, a misspelled command) is about all of them. */
function isAlone(word: string): boolean {
  if (word === "completion") return false;
  return NAMES.includes(word) || word === "--version" || word === "-V";
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
  for (const [group, commands] of Object.entries(GROUPS)) {
    program.commandsGroup(`${group}:`);
    for (const [name, load] of Object.entries(commands)) {
      if (name === called || !isAlone(called)) (await load())(program, run);
    }
  }
  program.helpCommand("help [command]", "the same as COMMAND --help");
  for (const command of program.commands) {
    ungroupFew(withTalk(command))
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
